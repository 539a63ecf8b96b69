"""Running models in this process: lease one, tokenise, batch, finish. What every backend app serves.

Does not know HTTP, dialects or how arrays are packed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence, Sized
from dataclasses import replace
from typing import Any, TypedDict, TypeVar

import numpy as np

from shared.cards import Device, ModelState
from shared.contracts import (
    AnyRequest,
    DecodeRequest,
    DecodeResult,
    EmbedRequest,
    EmbedResult,
    FloatMatrix,
    InputType,
    PredictRequest,
    PredictResult,
    Request,
    RequestT,
    RerankRequest,
    RerankResult,
    ResultT,
    Timings,
    TokenizeRequest,
    TokenizeResult,
    Tokens,
    is_cut,
)
from shared.engines import allocator
from shared.errors import BlitzError, InputTooLong, InvalidInput, NotFinite
from shared.inference.batcher import Batcher
from shared.inference.blank import LOWEST_COSINE, scored_indices, with_blank, without_blank
from shared.inference.model import Model
from shared.inference.model_cache import ModelCache
from shared.inference.steps import Steps, completed
from shared.inference.turns import Turns
from shared.models.catalogue import Catalogue
from shared.partition import in_whole, renumbered, split
from shared.request_size import characters_of, check_characters, check_tokens, estimate_request
from shared.vectors import finish, rows_not_finite, sigmoid, softmax

_log = logging.getLogger(__name__)

T = TypeVar("T", bound=Tokens)
S = TypeVar("S", bound=Sized)
U = TypeVar("U")

_LEAST_COSINE = np.nextafter(LOWEST_COSINE, 0)
"""The lowest score of a text. Blank documents, with LOWEST_COSINE, come below it."""

INLINE_CHARACTERS = 2_000
"""Up to here tokenising takes less than a millisecond: a thread would cost more than it frees."""

_LARGE_CHARACTERS = 500_000
"""After larger requests, freed memory is given back to the system."""


class _Told(TypedDict):
    """What every result says: which model answered, where, and what that took."""

    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings
    device: Device
    cut: tuple[int, ...]


class Inference:
    """A `shared.backends.base.Backend` in process. Safe to use from one event loop at a time.

    `run` raises UnknownModel, ModelLoadFailed, InvalidInput, InputTooLong, PayloadTooLarge (more tokens
    than max_request_tokens), Overloaded and Unavailable.
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
        self._handlers: dict[type[AnyRequest], Callable[[Model, Any], Awaitable[Any]]] = {
            EmbedRequest: self._embed,
            RerankRequest: self._rerank,
            PredictRequest: self._predict,
            TokenizeRequest: self._spell,
            DecodeRequest: self._decode,
        }

    async def run(self, request: Request[ResultT]) -> ResultT:
        """The result of all inputs or documents, in order."""
        async with self._cache.lease(request.model) as model:
            answered: ResultT = await self._handlers[type(request)](model, request)
            return answered

    async def _embed(self, model: Model, request: EmbedRequest) -> EmbedResult:
        rows, told = await self._run(model, model.tokenize, request)
        vectors = finish(rows, request.dimensions, request.normalize)
        return EmbedResult(vectors, max_tokens=model.manifest.max_tokens, **told)

    async def _rerank(self, model: Model, request: RerankRequest) -> RerankResult:
        """Scores of all documents, in order: a cross-encoder's, or an embedding model's cosines."""
        scored = scored_indices(request)
        if len(scored) == len(request.documents):
            return await self._score(model, request)
        try:
            result = await self._score(model, without_blank(request, scored))
        except BlitzError as error:
            raise renumbered(error, lambda index: (scored or [0])[index]) from error
        return with_blank(result, request, scored)

    async def _predict(self, model: Model, request: PredictRequest) -> PredictResult:
        """Each label's score for all inputs, in order: softmax, or sigmoid of a single label."""
        logits, told = await self._run(model, model.tokenize_inputs, request)
        if request.raw_scores:
            scores = logits.astype(np.float64)
        else:
            scores = softmax(logits) if logits.shape[1] > 1 else sigmoid(logits)
        return PredictResult(scores, labels=model.manifest.labels, **told)

    async def _spell(self, model: Model, request: TokenizeRequest) -> TokenizeResult:
        """Tokens of all inputs, in order. Waits for no other request's batch."""
        characters = characters_of(request)
        rows, counts, tokenization_s = await self._tokenize(
            lambda: model.spell(request, self._max_request_tokens), characters, "inputs"
        )
        return TokenizeResult(
            np.concatenate([row.spans for row in rows]),
            tuple(text for row in rows for text in row.texts),
            **_told(model, counts, Timings(tokenization_s)),
        )

    async def _decode(self, model: Model, request: DecodeRequest) -> DecodeResult:
        """Texts of all inputs, in order. Waits for no other request's batch."""
        began = time.perf_counter()
        steps = model.decode(request, self._max_request_tokens)
        texts = await self._finished(steps, characters_of(request))
        counts, timings = tuple(map(len, request.inputs)), Timings(time.perf_counter() - began)
        return DecodeResult(tuple(texts), **_told(model, counts, timings))

    def check(self) -> None:
        """Raise what a request would get now: Overloaded or Unavailable."""
        self._batcher.check()

    @property
    def queued_tokens(self) -> int:
        """Tokens accepted and not yet given to an engine."""
        return self._batcher.queued_tokens

    def in_memory(self) -> list[ModelState]:
        """The models that are loaded or being loaded. Asks no store."""
        states = self._cache.states(()).values()
        return [state for state in states if state.state in ("warm", "loading")]

    async def states(self) -> list[ModelState]:
        """Every model the cache or the store knows, by name. Raises StoreUnavailable."""
        cards = {card.name: card for card in await self._catalogue.cards()}
        states = self._cache.states(cards)
        usable = {
            name: min(card.max_tokens, card.memory.tokens_within(self._batcher.max_bytes))
            for name, card in cards.items()
        }
        return [replace(states[name], max_tokens=usable.get(name)) for name in sorted(states)]

    async def close(self) -> None:
        """Stop serving: waits for running batches, then frees the models."""
        await asyncio.to_thread(self._batcher.close)
        await asyncio.to_thread(self._turns.close)
        await asyncio.to_thread(self._cache.close)

    async def _score(self, model: Model, request: RerankRequest) -> RerankResult:
        """As `_rerank`, of documents that are not blank."""
        if model.manifest.task == "embedding":
            return await self._rerank_by_cosine(model, request)
        rows, told = await self._run(model, model.tokenize_pairs, request)
        logits = np.ascontiguousarray(rows[:, 0])
        scores = logits.astype(np.float64) if request.raw_scores else sigmoid(logits)
        return RerankResult(scores, method="cross-encoder", logits=logits, **told)

    async def _rerank_by_cosine(self, model: Model, request: RerankRequest) -> RerankResult:
        """Query and documents in one batch, with the model's prompts for each if it has them."""
        if request.max_document_tokens is not None:
            raise InvalidInput(
                f"{model.manifest.name} is an embedding model: max_tokens_per_doc is for cross-encoders",
                field="max_document_tokens",
            )

        queries = [request.query]

        def tokenize(part: RerankRequest) -> Steps[list[list[int]]]:
            query = []
            if queries:
                query = yield from _tokenize_as("query", (queries.pop(),), model, part)
            return query + (yield from _tokenize_as("document", part.documents, model, part))

        rows, told = await self._run(model, tokenize, request)
        vectors = finish(rows, None, normalize=True)
        # Not one matrix product: its rounding may depend on how many documents there are.
        cosines = np.array([float(vectors[0] @ row) for row in vectors[1:]], np.float64)
        scores = np.clip(cosines, _LEAST_COSINE, 1)  # they are rounded
        query, first, *others = told["token_counts"]
        told["token_counts"] = (query + first, *others)
        all_of_them, cut = tuple(range(len(scores))), told["cut"]
        told["cut"] = all_of_them if cut[:1] == (0,) else tuple(row - 1 for row in cut)
        return RerankResult(scores, method="cosine", **told)

    async def _run(
        self,
        model: Model,
        tokenize: Callable[[RequestT], Steps[Sequence[T]]],
        request: RequestT,
    ) -> tuple[FloatMatrix, _Told]:
        """Tokenise and batch what was let in: tokenising comes after, so that no refusal costs it.

        The rows of all sequences, in order, and what the result says of the run.
        """
        manifest = model.manifest
        paired = manifest.task == "cross-encoder"
        tokens = estimate_request(request, paired=paired, max_tokens=manifest.max_tokens)
        with self._batcher.reserve(tokens) as reservation:
            sequences, counts, tokenization_s = await self._tokenize(
                lambda: self._in_slices(tokenize, request, manifest.max_tokens),
                characters_of(request),
                request.items_as_told,
            )
            batched = await self._batcher.submit(model, sequences, reservation)
        _check_finite(batched.rows, model, request)
        cut = tuple(row for row, tokens in enumerate(sequences) if is_cut(tokens))
        timings = Timings(tokenization_s, batched.queue_s, batched.inference_s)
        return batched.rows, _told(model, counts, timings, cut)

    def _in_slices(
        self, tokenize: Callable[[RequestT], Steps[Sequence[T]]], request: RequestT, max_tokens: int
    ) -> Steps[list[T]]:
        """All tokens, or PayloadTooLarge before many more are held than a request may have.

        A query is in each pair, so few bytes can be many tokens.
        """
        size = max(1, self._max_request_tokens // max_tokens)
        slices = split(request, size)
        sequences: list[T] = []
        total = 0
        for number, part in enumerate(slices):
            try:
                rows = yield from tokenize(part)
            except BlitzError as error:
                raise in_whole(error, number * size) from error
            total += sum(map(len, rows))
            counted_all = number + 1 == len(slices)
            check_tokens(total, self._max_request_tokens, request.items_as_told, counted_all=counted_all)
            sequences += rows
        return sequences

    async def _tokenize(
        self, tokenize: Callable[[], Steps[Sequence[S]]], characters: int, field: str
    ) -> tuple[Sequence[S], tuple[int, ...], float]:
        """The sequences that `tokenize` makes, the number of tokens of each, and the seconds it took."""
        check_characters(characters, self._max_request_tokens, field)
        began = time.perf_counter()
        sequences = await self._finished(tokenize(), characters)
        tokenization_s = time.perf_counter() - began
        counts = tuple(len(tokens) for tokens in sequences)
        check_tokens(sum(counts), self._max_request_tokens, field)
        return sequences, counts, tokenization_s

    async def _finished(self, steps: Steps[U], characters: int) -> U:
        """The result of `steps`: at once if it is quick, or else in turns with other callers'."""
        if characters <= INLINE_CHARACTERS:
            return completed(steps)
        try:
            return await self._turns.finish(steps)
        finally:
            if characters >= _LARGE_CHARACTERS:
                allocator.give_back_soon()


def _told(
    model: Model, token_counts: tuple[int, ...], timings: Timings, cut: tuple[int, ...] = ()
) -> _Told:
    return {
        "token_counts": token_counts,
        "model": model.manifest.name,
        "revision": model.manifest.revision,
        "timings": timings,
        "device": model.manifest.device,
        "cut": cut,
    }


def _check_finite(rows: FloatMatrix, model: Model, request: RequestT) -> None:
    """Raises NotFinite naming the first input that the model has no numbers for."""
    found = rows_not_finite(rows)
    if not found:
        return
    query_rows = len(rows) - len(request.texts)  # one, if its own vector is compared with the others
    index = found[0] - query_rows
    field = "query" if index < 0 else f"{request.items_as_told}[{index}]"
    advice = "serve its CPU build" if model.manifest.device == "gpu" else "build it anew"
    raise NotFinite(
        f"{model.manifest.name} gives NaN or infinite numbers for {field}: leave it out, or {advice}",
        field=field,
    )


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
