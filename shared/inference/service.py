"""Running models in this process: lease one, tokenise, batch, finish. What every backend app serves.

Does not know HTTP, dialects or how arrays are packed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence, Sized
from typing import Any, TypedDict, TypeVar

import numpy as np
from msgspec.structs import replace

from shared.cards import Device, ModelState
from shared.contracts import (
    AnyRequest,
    DecodeRequest,
    DecodeResult,
    DoubleMatrix,
    EmbedRequest,
    EmbedResult,
    EmbedSparseRequest,
    EmbedSparseResult,
    EmbedTokensRequest,
    EmbedTokensResult,
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
from shared.engines.base import Rows
from shared.errors import BlitzError, InputTooLong, InvalidInput, NotFinite
from shared.inference.backlog import TokenReservation
from shared.inference.batcher import Batched, Batcher
from shared.inference.blank import LOWEST_COSINE, scored_indices, with_blank, without_blank
from shared.inference.finite import not_finite
from shared.inference.model import Model
from shared.inference.model_cache import ModelCache
from shared.inference.steps import Steps, completed
from shared.inference.turns import Turns
from shared.models.catalogue import Catalogue
from shared.partition import in_whole, renumbered, split
from shared.request_size import (
    characters_of,
    check_characters,
    check_numbers,
    check_tokens,
    estimate_request,
)
from shared.vectors import finish, max_sim, sigmoid, softmax

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


_SIDES: tuple[InputType, InputType] = ("query", "document")


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
            EmbedSparseRequest: self._embed_sparse,
            EmbedTokensRequest: self._embed_tokens,
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
        model = model.route(request.prompt_name, request.input_type)
        rows, told = await self._run(model, model.tokenize, request)
        vectors = finish(rows, request.dimensions, request.normalize)
        return EmbedResult(
            vectors,
            max_tokens=model.manifest.max_tokens,
            int8_range=model.manifest.int8_range(request.dimensions),
            **told,
        )

    async def _embed_sparse(self, model: Model, request: EmbedSparseRequest) -> EmbedSparseResult:
        rows, told = await self._run(model, model.tokenize_sparse, request)
        check_numbers(sum(len(row.values) for row in rows), request.items_as_told)
        return EmbedSparseResult.of(rows, **told)

    async def _embed_tokens(self, model: Model, request: EmbedTokensRequest) -> EmbedTokensResult:
        rows, told = await self._run(model, model.tokenize_late, request)
        return EmbedTokensResult.of(rows, **told)

    async def _rerank(self, model: Model, request: RerankRequest) -> RerankResult:
        """Scores of all documents, in order: a cross-encoder's, or an embedding model's cosines."""
        scored = scored_indices(request)
        if len(scored) == len(request.documents):
            return await self._score(model, request)
        try:
            result = await self._score(model, without_blank(request, scored))
        except BlitzError as error:
            raise renumbered(error, lambda index: (scored or [0])[index]) from error
        late = model.manifest.late_interaction
        # A query of so many vectors has no lower score than minus as many.
        lowest = LOWEST_COSINE if late is None or late.mean else -float(late.query_tokens)
        return with_blank(result, request, scored, lowest)

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
        model = model.route(request.prompt_name)
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
        if model.manifest.task in ("embedding", "multi-vector"):
            return await self._rerank_by_vectors(model, request)
        rows, told = await self._run(model, model.tokenize_pairs, request)
        logits = np.ascontiguousarray(rows[:, 0])
        scores = logits.astype(np.float64) if request.raw_scores else sigmoid(logits)
        return RerankResult(scores, method="cross-encoder", logits=logits, **told)

    async def _rerank_by_vectors(self, model: Model, request: RerankRequest) -> RerankResult:
        """Query and documents in one batch, with the model's prompts for each if it has them."""
        if request.max_document_tokens is not None:
            raise InvalidInput(
                f"{model.manifest.name} is no cross-encoder, which max_tokens_per_doc is for",
                field="max_document_tokens",
            )

        queries = [request.query]
        query_model, model = (model.route(None, each) for each in _SIDES)

        def tokenize(part: RerankRequest) -> Steps[list[Tokens]]:
            query: list[Tokens] = []
            if queries:
                query += yield from _tokenize_as("query", (queries.pop(),), query_model, part)
            return [*query, *(yield from _tokenize_as("document", part.documents, model, part))]

        rows, told = await self._run(model, tokenize, request, query_model)
        late = model.manifest.late_interaction
        scores = _cosines(rows) if late is None else _max_sims(rows, late.mean)
        query, first, *others = told["token_counts"]
        told["token_counts"] = (query + first, *others)
        all_of_them, cut = tuple(range(len(scores))), told["cut"]
        told["cut"] = all_of_them if cut[:1] == (0,) else tuple(row - 1 for row in cut)
        return RerankResult(scores, method="cosine" if late is None else "maxsim", **told)

    async def _run(
        self,
        model: Model,
        tokenize: Callable[[RequestT], Steps[Sequence[T]]],
        request: RequestT,
        first_model: Model | None = None,
    ) -> tuple[Any, _Told]:
        """Tokenise and batch what was let in: tokenising comes after, so that no refusal costs it.

        The rows of all sequences, in order, as `Model.run` gives them, and what the result says of the
        run. first_model: of the first sequence, where that takes another route.
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
            if manifest.late_interaction is not None:
                check_numbers(sum(counts) * manifest.dimensions, request.items_as_told)
            batched = await self._submit(model, sequences, reservation, first_model or model)
        _check_finite(batched.rows, model, request)
        cut = tuple(row for row, tokens in enumerate(sequences) if is_cut(tokens))
        timings = Timings(tokenization_s, batched.queue_s, batched.inference_s)
        return batched.rows, _told(model, counts, timings, cut)

    async def _submit(
        self,
        model: Model,
        sequences: Sequence[Tokens],
        reservation: TokenReservation,
        first_model: Model,
    ) -> Batched:
        if first_model is model:
            return await self._batcher.submit(model, sequences, reservation)
        first = await self._batcher.submit(first_model, sequences[:1], reservation)
        others = await self._batcher.submit(model, sequences[1:], reservation)
        return Batched(
            np.concatenate([first.rows, others.rows]),
            first.queue_s + others.queue_s,
            first.inference_s + others.inference_s,
        )

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


def _cosines(rows: FloatMatrix) -> DoubleMatrix:
    """(N,): the first row's cosine with each of the others."""
    vectors = finish(rows, None, normalize=True)
    # Not one matrix product: its rounding may depend on how many documents there are.
    cosines = np.array([float(vectors[0] @ row) for row in vectors[1:]], np.float64)
    return np.clip(cosines, _LEAST_COSINE, 1)  # they are rounded


def _max_sims(rows: Sequence[FloatMatrix], mean: bool) -> DoubleMatrix:
    """(N,): MaxSim of the first input's vectors with each of the others'. mean: a query vector's."""
    query = finish(rows[0], None, normalize=True)
    vectors = (finish(row, None, normalize=True) for row in rows[1:])
    scores = [max_sim(query, each) / (len(query) if mean else 1) for each in vectors]
    return np.array(scores, np.float64)


def _check_finite(rows: Rows, model: Model, request: RequestT) -> None:
    """Raises NotFinite naming the first input that the model has no numbers for."""
    found = not_finite(rows)
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
) -> Steps[Sequence[Tokens]]:
    kind: type[EmbedRequest | EmbedTokensRequest] = EmbedRequest
    tokenize: Callable[[Any], Steps[Sequence[Tokens]]] = model.tokenize
    if model.manifest.late_interaction is not None:
        kind, tokenize = EmbedTokensRequest, model.tokenize_late
    embedding = kind(
        request.model,
        texts,
        truncate=request.truncate,
        truncation_side=request.truncation_side,
        input_type=input_type,
    )
    try:
        return (yield from tokenize(embedding))
    except InputTooLong as error:
        # The model speaks of input[i], the caller sent a query and documents.
        index = (error.field or "").removeprefix("input")
        error.field = "query" if input_type == "query" else f"documents{index}"
        raise
