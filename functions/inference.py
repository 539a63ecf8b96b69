"""Running models in this process: lease one, tokenise, batch, finish. What every backend app serves.

Does not know HTTP, dialects or how arrays are packed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence, Sized
from typing import TypeVar

import numpy as np

from shared import allocator, telemetry
from shared.batching import Batched, Batcher, Capacity
from shared.catalogue import Catalogue
from shared.contracts import (
    EmbedRequest,
    EmbedResult,
    InputType,
    ModelState,
    PredictRequest,
    PredictResult,
    RerankRequest,
    RerankResult,
    Timings,
    TokenizeRequest,
    TokenizeResult,
    Tokens,
)
from shared.cpus import usable_cpus
from shared.engines.base import OpenEngine
from shared.errors import InputTooLong, InvalidInput, PayloadTooLarge
from shared.manifest import Device, split_pinned
from shared.model import Model, load_model
from shared.model_cache import ModelCache
from shared.model_store import open_store
from shared.settings import Settings
from shared.steps import Steps, completed
from shared.turns import Turns
from shared.vectors import finish, sigmoid, softmax

T = TypeVar("T", bound=Tokens)
S = TypeVar("S", bound=Sized)

INLINE_CHARACTERS = 2_000
"""Up to here tokenising takes less than a millisecond: a thread would cost more than it frees."""

_LARGE_CHARACTERS = 500_000
"""From here on what a request took is given back to the system once it is freed."""


CHARACTERS_PER_TOKEN = 16
"""More than in any language. Beyond it a request is refused unread: tokenising takes 1 s a megabyte."""


class Inference:
    """A `shared.backend_client.Backend` in process. Safe to use from one event loop at a time.

    `embed`, `rerank`, `predict` and `tokenize` raise UnknownModel, ModelLoadFailed, InvalidInput,
    InputTooLong, PayloadTooLarge (more tokens than max_request_tokens), Overloaded and Unavailable.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        cache: ModelCache,
        batcher: Batcher,
        turns: Turns,
        max_request_tokens: int,
    ) -> None:
        """turns: in which texts are tokenised."""
        self._catalogue = catalogue
        self._cache = cache
        self._batcher = batcher
        self._turns = turns
        self._max_request_tokens = max_request_tokens

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Vectors of all inputs, in order."""
        async with self._cache.lease(request.model) as model:
            batched, counts, timings = await self._run(
                model, lambda: model.tokenize(request), _characters(request.inputs), "input"
            )
        return EmbedResult(
            finish(batched.rows, request.dimensions, request.normalize),
            counts,
            model.manifest.name,
            model.manifest.revision,
            timings,
            model.manifest.device,
            model.manifest.max_tokens,
        )

    async def rerank(self, request: RerankRequest) -> RerankResult:
        """Scores of all documents, in order: a cross-encoder's, or an embedding model's cosines."""
        async with self._cache.lease(request.model) as model:
            if model.manifest.task == "embedding":
                return await self._rerank_by_cosine(model, request)
            characters = len(request.query) + _characters(request.documents)
            batched, counts, timings = await self._run(
                model, lambda: model.tokenize_pairs(request), characters, "documents"
            )
        logits = batched.rows[:, 0]
        return RerankResult(
            np.ascontiguousarray(logits if request.raw_scores else sigmoid(logits)),
            counts,
            model.manifest.name,
            model.manifest.revision,
            "cross-encoder",
            timings,
            model.manifest.device,
        )

    async def predict(self, request: PredictRequest) -> PredictResult:
        """Each label's score for all inputs, in order: softmax, or sigmoid of a single label."""
        async with self._cache.lease(request.model) as model:
            batched, counts, timings = await self._run(
                model, lambda: model.tokenize_inputs(request), _characters(request.inputs), "inputs"
            )
        scores = batched.rows
        if not request.raw_scores:
            scores = softmax(scores) if scores.shape[1] > 1 else sigmoid(scores)
        manifest = model.manifest
        return PredictResult(
            scores,
            counts,
            manifest.name,
            manifest.revision,
            manifest.labels,
            timings,
            manifest.device,
        )

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Tokens of all inputs, in order. Waits for no other request's batch."""
        async with self._cache.lease(request.model) as model:
            characters = _characters(request.inputs)
            rows, counts, tokenization_s = await self._tokenize(
                lambda: model.spell(request, self._max_request_tokens), characters, "inputs"
            )
        manifest = model.manifest
        return TokenizeResult(
            np.concatenate([row.spans for row in rows]),
            tuple(text for row in rows for text in row.texts),
            counts,
            manifest.name,
            manifest.revision,
            Timings(tokenization_s),
            manifest.device,
        )

    async def states(self) -> list[ModelState]:
        """Every model the cache or the store knows, by name. Raises StoreUnavailable."""
        cards = await self._catalogue.cards()
        states = self._cache.states(card.name for card in cards)
        return [states[name] for name in sorted(states)]

    async def close(self) -> None:
        """Stop serving: waits for running batches, then frees the models."""
        await asyncio.to_thread(self._batcher.close)
        await asyncio.to_thread(self._turns.close)
        await asyncio.to_thread(self._cache.close)

    async def _rerank_by_cosine(self, model: Model, request: RerankRequest) -> RerankResult:
        """Query and documents in one batch, with the model's prompts for each if it has them."""
        if request.max_document_tokens is not None:
            raise InvalidInput(
                f"{model.manifest.name} is an embedding model: max_tokens_per_doc is for cross-encoders",
                field="max_document_tokens",
            )

        def tokenize() -> Steps[list[list[int]]]:
            query = yield from _tokenize_as("query", (request.query,), model, request)
            return query + (yield from _tokenize_as("document", request.documents, model, request))

        characters = len(request.query) + _characters(request.documents)
        batched, counts, timings = await self._run(model, tokenize, characters, "documents")
        vectors = finish(batched.rows, None, normalize=True)
        # Not one matrix product: its rounding may depend on how many documents there are.
        scores = np.array([float(vectors[0] @ row) for row in vectors[1:]], np.float32)
        counts = (counts[0] + counts[1], *counts[2:])
        manifest = model.manifest
        return RerankResult(
            scores, counts, manifest.name, manifest.revision, "cosine", timings, manifest.device
        )

    async def _run(
        self, model: Model, tokenize: Callable[[], Steps[Sequence[T]]], characters: int, field: str
    ) -> tuple[Batched, tuple[int, ...], Timings]:
        """Tokenise and batch. field: what is too much when it is."""
        # Here too: tokenising what is then refused would take the time of what was accepted.
        self._batcher.check()
        sequences, counts, tokenization_s = await self._tokenize(tokenize, characters, field)
        batched = await self._batcher.submit(model, sequences)
        return batched, counts, Timings(tokenization_s, batched.queue_s, batched.inference_s)

    async def _tokenize(
        self, tokenize: Callable[[], Steps[Sequence[S]]], characters: int, field: str
    ) -> tuple[Sequence[S], tuple[int, ...], float]:
        """What `tokenize` gives, in turns with others if it is long; how many tokens; seconds taken."""
        if characters > self._max_request_tokens * CHARACTERS_PER_TOKEN:
            raise PayloadTooLarge(
                f"the {field} have {characters} characters, far more than the "
                f"{self._max_request_tokens} tokens that a request may have: send fewer at once",
                field=field,
            )
        began = time.perf_counter()
        if characters <= INLINE_CHARACTERS:
            sequences = completed(tokenize())
        else:
            try:
                sequences = await self._turns.finish(tokenize())
            finally:
                if characters >= _LARGE_CHARACTERS:
                    allocator.give_back_soon()
        tokenization_s = time.perf_counter() - began
        counts = tuple(len(tokens) for tokens in sequences)
        if sum(counts) > self._max_request_tokens:
            raise PayloadTooLarge(
                f"the {field} have {sum(counts)} tokens, a request may have "
                f"{self._max_request_tokens}: send fewer at once",
                field=field,
            )
        return sequences, counts, tokenization_s


def _tokenize_as(
    input_type: InputType, texts: tuple[str, ...], model: Model, request: RerankRequest
) -> Steps[list[list[int]]]:
    embedding = EmbedRequest(
        request.model,
        texts,
        truncate=request.truncate,
        truncation_side=request.truncation_side,
        input_type=input_type,
    )
    try:
        return (yield from model.tokenize(embedding))
    except InputTooLong as error:
        # The model speaks of input[i], the caller sent a query and documents.
        index = (error.field or "").removeprefix("input")
        error.field = "query" if input_type == "query" else f"documents{index}"
        raise


def _characters(inputs: Sequence[str | tuple[object, ...]]) -> int:
    return sum(len(item) if isinstance(item, str) else sum(map(len, map(str, item))) for item in inputs)


def build_inference(
    settings: Settings, device: Device, open_engine: OpenEngine, capacity: Capacity
) -> Inference:
    """Everything of this process, from settings; warming goes on in the background.

    capacity: what the settings leave to the engine.

    Raises Misconfigured for a store that cannot be.
    """
    allocator.bound_arenas()
    store = open_store(settings)

    def find_revision(name: str) -> str:
        plain, revision = split_pinned(name)
        return revision or store.current(plain, device)

    def load(name: str, revision: str) -> Model:
        folder, manifest = store.fetch(split_pinned(name)[0], revision)
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
        threads=settings.threads or capacity.threads,
        budget_tokens=settings.batch_tokens or capacity.batch_tokens,
        max_texts=settings.batch_texts or capacity.batch_texts,
        max_wait_s=settings.max_wait_ms / 1000,
        max_queue_tokens=settings.queue_tokens,
        max_queue_s=settings.max_queue_s,
    )
    telemetry.PROCESS.watch_queue(lambda: batcher.queued_tokens)
    turns = Turns(usable_cpus(), settings.max_queue_s)
    catalogue = Catalogue(store, (device,))
    return Inference(catalogue, cache, batcher, turns, settings.max_request_tokens)
