"""Which models a service finds in its store when it starts; without any, a router does not.

Does not know what serves them.
"""

from __future__ import annotations

import asyncio
import logging

from shared.cards import Device, ModelCard
from shared.command_line import command_of
from shared.errors import Misconfigured, Unavailable
from shared.models.catalogue import Catalogue
from shared.models.store import open_store
from shared.settings import Settings

_log = logging.getLogger(__name__)

_HOW_TO_PUBLISH = (
    "publish the sample model with: "
    f"{command_of('model_build.assemble')} all-MiniLM-L6-v2 --target cpu-int8 --push "
)
_DEVICES: dict[str, tuple[Device, ...]] = {"router": ("cpu", "gpu"), "cpu": ("cpu",), "gpu": ("gpu",)}


def cards_at_start(settings: Settings) -> list[ModelCard] | None:
    """The models in the store; None if a remote store does not answer now.

    Raises Misconfigured for a router without any model, or whose store folder is missing.
    """
    url = settings.model_store
    try:
        cards = asyncio.run(Catalogue(open_store(settings), _DEVICES[settings.role]).cards())
    except Unavailable as error:
        if url.startswith("file://") and settings.role == "router":
            raise Misconfigured(
                f"--model-store {url} is not a readable folder; {_HOW_TO_PUBLISH}{url}"
            ) from error
        _log.warning("%s; models are listed once it answers", error.message)
        return None
    if not cards and settings.role == "router":
        raise Misconfigured(f"--model-store {url} holds no model; {_HOW_TO_PUBLISH}{url}")
    return cards
