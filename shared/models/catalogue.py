"""Lists the published models for callers and for routing, from the store's pointers and manifests.

Does not know which models are loaded.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import msgspec
from msgspec.structs import replace

from shared.cards import About, Device, ModelCard, Share, Staged
from shared.errors import InvalidArtefact, UnknownModel
from shared.models.manifest import Manifest
from shared.models.store import ModelStore
from shared.observability.logs import log_failure
from shared.vectors import poolings_of

_log = logging.getLogger(__name__)

CARDS_S = 5.0
"""Maximum age of a listing, in seconds."""


class Catalogue:
    """The models of `store` that are published for any of `devices`, as last listed.

    The store is listed on demand, at most once per CARDS_S, in a separate thread shared by all callers:
    no caller's cancellation or deadline ends it, and callers may use any thread and event loop. While
    the store does not answer, the previous listing is used. clock: monotonic seconds.
    """

    def __init__(
        self,
        store: ModelStore,
        devices: Sequence[Device],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._devices = devices
        self._clock = clock
        self._lock = threading.Lock()
        self._listing: Future[None] | None = None  # the latest; done once it has succeeded or failed
        self._next_listing = 0.0
        self._cards: list[ModelCard] = []
        self._by_name: dict[str, list[ModelCard]] = {}
        self._error: Exception | None = None  # why there is no listing

    async def cards(self) -> list[ModelCard]:
        """A card for each model and device, sorted by name, at most CARDS_S old.

        Raises StoreUnavailable if the store does not answer and was never listed.
        """
        await _wait_for(self._current_listing())
        if self._error is not None:
            raise self._error.with_traceback(None)  # raised many times: tracebacks must not accumulate
        return self._cards

    async def cards_of(self, name: str) -> list[ModelCard]:
        """A model's cards, one per device; empty if it is unknown. Costs a lock and a dict look-up.

        Waits only for an unknown name. A known one gets the last listing, however old, while a new one
        is made.
        """
        listing = self._current_listing()
        if name not in self._by_name:
            await _wait_for(listing)
        return self._by_name.get(name, [])

    def _current_listing(self) -> Future[None]:
        """The latest listing, or a new one if that is too old."""
        with self._lock:
            last = self._listing
            if last is None or (last.done() and self._clock() >= self._next_listing):
                last = Future()
                # A running future cannot be cancelled, so a caller that leaves cannot end it for others.
                last.set_running_or_notify_cancel()
                threading.Thread(target=self._list, args=(last,), name="catalogue", daemon=True).start()
                self._listing = last
            return last

    def _list(self, listing: Future[None]) -> None:
        try:
            cards = [card for name in self._store.names() for card in self._cards_of(name)]
            by_name: dict[str, list[ModelCard]] = {}
            for card in cards:
                by_name.setdefault(card.name, []).append(card)
            self._cards, self._by_name, self._error = cards, by_name, None
        except Exception as error:
            log_failure(_log, "the models could not be listed", error, logging.WARNING)
            if not self._cards:
                self._error = error
        self._next_listing = self._clock() + CARDS_S
        listing.set_result(None)

    def _cards_of(self, name: str) -> list[ModelCard]:
        """The model's cards; empty if it is broken, which must not hide the others."""
        cards = []
        # Before the pointer, which moves first: what is promoted is then never taken for over.
        shares = self._shares_of(name)
        try:
            for device, revision in self._store.revisions(name).items():
                if device in self._devices:
                    card = card_of(self._store.manifest(name, revision))
                    cards.append(self._with_staged(card, shares.get(device)))
        except (UnknownModel, InvalidArtefact) as error:
            _log.warning("model %s is not listed: %s", name, error.message)
        return cards

    def _shares_of(self, name: str) -> dict[Device, Share]:
        """What is staged; nothing if that is broken, which must not harm what is current."""
        try:
            return self._store.stages.of(name)
        except InvalidArtefact as error:
            _log.warning("of %s nothing is staged: %s", name, error.message)
            return {}

    def _with_staged(self, card: ModelCard, share: Share | None) -> ModelCard:
        if share is None or not share.counts_beside(card.revision):
            return card
        try:
            staged = card_of(self._store.manifest(card.name, share.revision))
            if staged.device != card.device:
                raise InvalidArtefact(f"it is not for {card.device}")
        except (UnknownModel, InvalidArtefact) as error:
            _log.warning("%s of %s is not staged: %s", share.revision, card.name, error.message)
            return card
        return replace(card, staged=Staged(staged, share))


async def _wait_for(listing: Future[None]) -> None:
    if not listing.done():
        await asyncio.wrap_future(listing)


def card_of(manifest: Manifest) -> ModelCard:
    """What the router and clients are told of a manifest."""
    return ModelCard(
        name=manifest.name,
        revision=manifest.revision,
        target=manifest.target,
        architecture=manifest.architecture,
        pooling=_pooling_of(manifest),
        dimensions=manifest.dimensions,
        max_tokens=manifest.max_tokens,
        prompts=tuple(sorted(manifest.prompts)),
        created=manifest.created,
        device=manifest.device,
        task=manifest.task,
        labels=manifest.labels,
        size_bytes=manifest.size,
        memory=manifest.text_memory,
        closeness=manifest.quality.closeness if manifest.quality else None,
        int8_ranges=tuple(manifest.int8_ranges.items()),
        about=About(
            source=manifest.source.name,
            prompts=manifest.prompts,
            default_prompt=manifest.default_prompt,
            matryoshka_dimensions=manifest.matryoshka_dimensions,
            quality=msgspec.to_builtins(manifest.quality) if manifest.quality else {},
        ),
    )


def _pooling_of(manifest: Manifest) -> str | None:
    if manifest.sparse is not None:
        return "splade"  # as Text Embeddings Inference calls it
    return "+".join(poolings_of(manifest.pooling)) if manifest.pooling else None
