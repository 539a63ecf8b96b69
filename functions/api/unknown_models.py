"""Warnings at a router's start: names in its settings that match no model of the store.

Does not know where logs go, or how a name is resolved when a request brings it.
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
from shared.settings import Settings, aliases_of

_log = logging.getLogger(__name__)


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
