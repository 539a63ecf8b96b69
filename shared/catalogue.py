"""What models are published, for callers and for routing: the store's pointers and manifests, listed.

Does not know which models are loaded, nor where.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence

from shared.contracts import ModelCard
from shared.errors import InvalidArtefact, UnknownModel
from shared.manifest import Device, Manifest
from shared.model_store import ModelStore

_log = logging.getLogger(__name__)

CARDS_S = 5.0
"""How long a listing of the store is reused, in seconds."""


class Catalogue:
    """The models of `store` that are published for any of `devices`. Thread-safe."""

    def __init__(self, store: ModelStore, devices: Sequence[Device]) -> None:
        self._store = store
        self._devices = devices
        self._listing = threading.Lock()
        self._cards: list[ModelCard] = []
        self._cards_until = 0.0

    async def cards(self) -> list[ModelCard]:
        """A card for each model and device, by name, as it was at most CARDS_S ago.

        Raises StoreUnavailable.
        """
        return await asyncio.to_thread(self._list)

    def _list(self) -> list[ModelCard]:
        with self._listing:  # many callers, one listing
            if time.monotonic() >= self._cards_until:
                self._cards = [card for name in self._store.names() for card in self._cards_of(name)]
                self._cards_until = time.monotonic() + CARDS_S
            return self._cards

    def _cards_of(self, name: str) -> list[ModelCard]:
        """None for what cannot be served: one broken model must not hide the others."""
        cards = []
        try:
            for device, revision in self._store.revisions(name).items():
                if device in self._devices:
                    cards.append(card_of(self._store.manifest(name, revision)))
        except (UnknownModel, InvalidArtefact) as error:
            _log.warning("model %s is not listed: %s", name, error.message)
        return cards


def card_of(manifest: Manifest) -> ModelCard:
    return ModelCard(
        name=manifest.name,
        revision=manifest.revision,
        target=manifest.target,
        architecture=manifest.architecture,
        pooling=manifest.pooling,
        dimensions=manifest.dimensions,
        max_tokens=manifest.max_tokens,
        prompts=tuple(sorted(manifest.prompts)),
        created=manifest.created,
        device=manifest.device,
        task=manifest.task,
        labels=manifest.labels,
        size_bytes=manifest.size,
    )
