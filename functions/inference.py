"""Embedding in this process: lease a model, tokenise, batch, finish. What every backend app serves.

Does not know HTTP, dialects or how vectors are packed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from shared import telemetry
from shared.batching import Batcher
from shared.contracts import EmbedRequest, EmbedResult, ModelCard, ModelState, Timings
from shared.cpus import usable_cpus
from shared.engines.base import Engine
from shared.engines.onnx import OnnxEngine
from shared.errors import InvalidArtefact, PayloadTooLarge, UnknownModel
from shared.manifest import Manifest
from shared.model import Model, load_model
from shared.model_cache import ModelCache
from shared.model_store import ModelStore, open_store
from shared.settings import Settings
from shared.vectors import finish

_log = logging.getLogger(__name__)

INLINE_CHARACTERS = 2_000
"""Up to here tokenising takes less than a millisecond: a thread would cost more than it frees."""
CARDS_S = 5.0
"""How long a listing of the store is reused, in seconds."""


class Inference:
    """A `shared.backend_client.Backend` in process. Safe to use from one event loop at a time."""

    def __init__(
        self, store: ModelStore, cache: ModelCache, batcher: Batcher, max_request_tokens: int
    ) -> None:
        self._store = store
        self._cache = cache
        self._batcher = batcher
        self._max_request_tokens = max_request_tokens
        self._listing = threading.Lock()
        self._cards: list[ModelCard] = []
        self._cards_until = 0.0

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Vectors of all inputs, in order.

        Raises UnknownModel, ModelLoadFailed, InvalidInput, InputTooLong, PayloadTooLarge (more tokens
        than max_request_tokens), Overloaded and Unavailable.
        """
        async with self._cache.lease(request.model) as model:
            began = time.perf_counter()
            sequences = await _tokenize(model, request)
            tokenization_s = time.perf_counter() - began
            counts = tuple(len(ids) for ids in sequences)
            if sum(counts) > self._max_request_tokens:
                raise PayloadTooLarge(
                    f"the inputs have {sum(counts)} tokens, a request may have "
                    f"{self._max_request_tokens}: send fewer inputs at once",
                    field="input",
                )
            batched = await self._batcher.submit(model, sequences)
            return EmbedResult(
                finish(batched.vectors, request.dimensions, request.normalize),
                counts,
                model.manifest.name,
                model.manifest.revision,
                Timings(tokenization_s, batched.queue_s, batched.inference_s),
            )

    async def cards(self) -> list[ModelCard]:
        """The store's models for the CPU, as it was at most CARDS_S ago. Raises StoreUnavailable."""
        return await asyncio.to_thread(self._list_cards)

    async def states(self) -> list[ModelState]:
        """Every model the cache or the store knows, by name. Raises StoreUnavailable."""
        states = {card.name: ModelState(card.name, "cold") for card in await self.cards()}
        states |= self._cache.states()
        return [states[name] for name in sorted(states)]

    async def close(self) -> None:
        """Stop serving: waits for running batches, then frees the models."""
        await asyncio.to_thread(self._batcher.close)
        await asyncio.to_thread(self._cache.close)

    def _list_cards(self) -> list[ModelCard]:
        with self._listing:  # many callers, one listing
            if time.monotonic() >= self._cards_until:
                cards = (self._card(name) for name in sorted(self._store.names()))
                self._cards = [card for card in cards if card is not None]
                self._cards_until = time.monotonic() + CARDS_S
            return self._cards

    def _card(self, name: str) -> ModelCard | None:
        """None for what cannot be served here: one broken model must not hide the others."""
        try:
            return _card_of(self._store.manifest(name, self._store.current(name, "cpu")))
        except (UnknownModel, InvalidArtefact) as error:
            _log.warning("model %s is not listed: %s", name, error.message)
            return None


async def _tokenize(model: Model, request: EmbedRequest) -> list[list[int]]:
    if sum(map(len, request.inputs)) <= INLINE_CHARACTERS:
        return model.tokenize(request)
    return await asyncio.to_thread(model.tokenize, request)


def _card_of(manifest: Manifest) -> ModelCard:
    return ModelCard(
        manifest.name,
        manifest.revision,
        manifest.target,
        manifest.architecture,
        manifest.pooling,
        manifest.dimensions,
        manifest.max_tokens,
        tuple(sorted(manifest.prompts)),
        manifest.created,
    )


def build_inference(settings: Settings, open_engine: Callable[[Path], Engine] = OnnxEngine) -> Inference:
    """Everything of this process, from settings; warming goes on in the background.

    Raises Misconfigured for a store that cannot be.
    """
    store = open_store(settings)

    def find_revision(name: str) -> str:
        return store.current(name, "cpu")

    def load(name: str, revision: str) -> Model:
        folder, manifest = store.fetch(name, revision)
        return load_model(folder, manifest, open_engine)

    cache = ModelCache(
        find_revision=find_revision,
        load=load,
        max_models=settings.cache_models,
        max_bytes=settings.cache_memory_bytes,
        refresh_s=settings.refresh_s,
        observer=telemetry.PROCESS,
    )
    cache.warm(settings.warm_models)
    batcher = Batcher(
        threads=settings.threads or usable_cpus(),
        budget_tokens=settings.batch_tokens,
        max_texts=settings.batch_texts,
        max_wait_s=settings.max_wait_ms / 1000,
        max_queue_tokens=settings.queue_tokens,
    )
    telemetry.PROCESS.watch_queue(lambda: batcher.queued_tokens)
    return Inference(store, cache, batcher, settings.max_request_tokens)
