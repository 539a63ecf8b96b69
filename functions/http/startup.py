"""Log lines of a starting process: its limits, and configured names that match no model.

Does not know what is served, or where logs go.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress

from shared.cards import ModelCard
from shared.errors import BlitzError
from shared.models.catalogue import Catalogue
from shared.observability import logs
from shared.settings import Settings, aliases_of

_start = logging.getLogger(logs.START)
_log = logging.getLogger(__name__)


def log_engine_limits(
    role: str,
    *,
    threads: int,
    tokenizer_threads: int,
    models: int,
    models_bytes: int,
    batches_bytes: int,
) -> None:
    """Log a backend's threads and its memory for models and for micro-batches."""
    _start.info(
        "%-7s %d engine threads, %d tokenizer threads; memory: at most %d models in %s, %s to run them",
        f"{role}:",
        threads,
        tokenizer_threads,
        models,
        _size(models_bytes),
        _size(batches_bytes),
        extra={
            "engine_threads": threads,
            "tokenizer_threads": tokenizer_threads,
            "cache_models": models,
            "cache_memory_bytes": models_bytes,
            "batch_memory_bytes": batches_bytes,
        },
    )


def log_request_limits(settings: Settings, connections: int | None = None) -> None:
    """Log the request limits. connections: their limit; None: another server accepts them."""
    taken = "" if connections is None else f"{connections:,} connections, "
    _start.info(
        "%-7s at most %s%s concurrent requests with %s of bodies and responses; a body has at most %s",
        f"{settings.role}:",
        taken,
        f"{settings.max_requests:,}",
        _size(settings.max_pending_bytes),
        _size(settings.max_body_bytes),
        extra={
            "max_requests": settings.max_requests,
            "max_pending_bytes": settings.max_pending_bytes,
            "max_body_bytes": settings.max_body_bytes,
            **({} if connections is None else {"max_connections": connections}),
        },
    )


def warn_of_unknown_models(settings: Settings, cards: Sequence[ModelCard]) -> None:
    """Log a warning for each name in a router's settings that matches no model of `cards`.

    Not an error: the model may be published later.
    """
    names = dict.fromkeys(card.name for card in cards)
    there_are = ", ".join(names) or "none"
    aliases = aliases_of(settings.model_aliases)
    default = settings.default_model
    if default and aliases.get(default, default) not in names:
        _log.warning(
            "BLITZ_DEFAULT_MODEL is %s, which is not in the store: requests that name no model get 404 "
            "until it is; there are: %s",
            *(default, there_are),
        )
    for alias, name in aliases.items():
        if name not in names:
            _log.warning(
                "BLITZ_MODEL_ALIASES has %s=%s, and %s is not in the store: requests for %s get 404 "
                "until it is; there are: %s",
                *(alias, name, name, alias, there_are),
            )
    if not settings.cpu_backend_url:
        return  # in this process the model cache logs models that do not load
    for name in settings.names_to_warm:
        if name not in names:
            _log.warning(
                "BLITZ_WARM_MODELS has %s, which is not in the store: /ready is 503 until it is; there "
                "are: %s",
                *(name, there_are),
            )


def warn_of_unknown_models_soon(settings: Settings, catalogue: Catalogue) -> threading.Thread | None:
    """The same in a thread, so that the start does not wait for the store; None if no name is set."""

    def check() -> None:
        with suppress(BlitzError):  # the catalogue has logged it
            warn_of_unknown_models(settings, asyncio.run(catalogue.cards()))

    if not (settings.default_model or settings.model_aliases or settings.warm_models):
        return None
    thread = threading.Thread(target=check, name="check-names", daemon=True)
    thread.start()
    return thread


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
