"""What the log tells when a process starts: which limits hold, and which names mean no model.

Does not know what is served, nor where logs go.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress

from shared.contracts import ModelCard
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
    """Of a process that has models: its threads, and the memory for models and for running them."""
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
    """How much at once. connections: that this process takes; None: another server does."""
    taken = "" if connections is None else f"{connections:,} connections, "
    _start.info(
        "%-7s at most %s%s requests under way with %s of bodies and answers; a body has at most %s",
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
    """A warning for each name in a router's settings that means no model of `cards`.

    No error: a store may be filled later.
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
                "BLITZ_MODEL_ALIASES has %s=%s, and %s is not in the store: who asks for %s gets 404 "
                "until it is; there are: %s",
                *(alias, name, name, alias, there_are),
            )
    if not settings.cpu_backend_url:
        return  # where the models are, their cache tells of those that do not load
    for name in settings.names_to_warm:
        if name not in names:
            _log.warning(
                "BLITZ_WARM_MODELS has %s, which is not in the store: /ready is 503 until it is; there "
                "are: %s",
                *(name, there_are),
            )


def warn_of_unknown_models_soon(settings: Settings, catalogue: Catalogue) -> threading.Thread | None:
    """The same in a thread, for a start that waits for no store; None if no name is set."""

    def check() -> None:
        with suppress(BlitzError):  # the catalogue has told it
            warn_of_unknown_models(settings, asyncio.run(catalogue.cards()))

    if not (settings.default_model or settings.model_aliases or settings.warm_models):
        return None
    thread = threading.Thread(target=check, name="check-names", daemon=True)
    thread.start()
    return thread


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
