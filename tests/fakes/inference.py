"""Backends whose answers a test can foretell, hold, break and look into; without models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from shared.cards import Device, ModelState
from shared.contracts import (
    AnyRequest,
    DecodeRequest,
    DecodeResult,
    EmbedRequest,
    EmbedResult,
    EmbedSparseRequest,
    EmbedSparseResult,
    EmbedTokensRequest,
    EmbedTokensResult,
    PredictRequest,
    PredictResult,
    RerankRequest,
    RerankResult,
    SparseRow,
    TokenizeRequest,
    TokenizeResult,
)
from shared.names import split_pinned
from shared.wire import messages
from tests.fakes.backend import ByOperation


class FakeInference(ByOperation):
    """Rows are [length, 1], of `revision` or the one that is named, and embeddings of `device`. Keeps
    what it was asked.

    `before` is awaited with each request and may raise; `hang` never answers; `error` is raised.
    """

    def __init__(self, device: Device = "cpu", revision: str = "r") -> None:
        self.device: Device = device
        self.revision = revision
        self.asked: list[AnyRequest] = []
        self.before: Callable[[Any], Awaitable[None]] | None = None
        self.error: Exception | None = None
        self.hang = False
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.state: Any = "warm"

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        rows, counts, revision = await self._rows(request, request.inputs)
        return EmbedResult(rows, counts, request.model, revision, device=self.device)

    async def embed_sparse(self, request: EmbedSparseRequest) -> EmbedSparseResult:
        rows, counts, revision = await self._rows(request, request.inputs)
        sparse = [SparseRow(np.arange(2, dtype=np.int32), row) for row in rows]
        return EmbedSparseResult.of(sparse, token_counts=counts, model=request.model, revision=revision)

    async def embed_tokens(self, request: EmbedTokensRequest) -> EmbedTokensResult:
        rows, counts, revision = await self._rows(request, request.inputs)
        vectors = [np.repeat(row[None], count, axis=0) for row, count in zip(rows, counts, strict=True)]
        return EmbedTokensResult.of(vectors, token_counts=counts, model=request.model, revision=revision)

    async def rerank(self, request: RerankRequest) -> RerankResult:
        rows, counts, revision = await self._rows(request, request.documents)
        scores = rows[:, 0].astype(np.float64)
        return RerankResult(scores, counts, request.model, revision, "cross-encoder")

    async def predict(self, request: PredictRequest) -> PredictResult:
        rows, counts, revision = await self._rows(request, request.inputs)
        return PredictResult(rows.astype(np.float64), counts, request.model, revision, ("no", "yes"))

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        _, counts, revision = await self._rows(request, request.inputs)
        texts = tuple(character for text in request.inputs for character in text)
        spans = np.zeros((len(texts), 4), np.int32)
        return TokenizeResult(spans, texts, counts, request.model, revision)

    async def decode(self, request: DecodeRequest) -> DecodeResult:
        _, counts, revision = await self._rows(request, request.inputs)
        texts = tuple("".join(chr(each % 128) for each in ids) for ids in request.inputs)
        return DecodeResult(texts, counts, request.model, revision)

    def check(self) -> None:
        """There is always room."""

    async def states(self) -> list[ModelState]:
        if self.error is not None:
            raise self.error
        return [ModelState("m", self.state, "it broke" if self.state == "failed" else None)]

    async def close(self) -> None:
        pass

    async def _rows(
        self, request: AnyRequest, inputs: Sequence[Any]
    ) -> tuple[np.ndarray[Any, Any], tuple[int, ...], str]:
        """Rows, token counts, and the revision that was named, or served when the request came."""
        self.asked.append(request)
        self.started.set()
        revision = split_pinned(request.model)[1] or self.revision
        if self.before is not None:
            await self.before(request)
        if self.hang:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        if self.error is not None:
            raise self.error
        lengths = tuple(len(item) for item in inputs)
        return np.array([[length, 1] for length in lengths], np.float32), lengths, revision


class FakeDevice(FakeInference):
    """One of a dispatcher's backends: "m" is warm there, and there is a model that only it has."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, f"{device}-1")
        self.asked_states = 0
        self.closed = False

    async def states(self) -> list[ModelState]:
        self.asked_states += 1
        return [*await super().states(), ModelState(f"only-{self.device}", "cold")]

    async def close(self) -> None:
        self.closed = True


class FixedAnswers:
    """Answers each operation with its result, and asked for its models with `states`.

    Raises `error` instead if there is one. Keeps what it was asked.
    """

    def __init__(self, states: list[ModelState], results: dict[str, Any]) -> None:
        self._states = states
        self._results = results
        self.error: Exception | None = None
        self.asked: list[Any] = []

    async def run(self, request: AnyRequest) -> Any:
        return self._answer(request, self._results[request.operation])

    async def states(self) -> list[ModelState]:
        self._answer("states", self._states)
        return self._states

    def check(self) -> None:
        """There is always room."""

    async def close(self) -> None:
        pass

    def _answer(self, asked: Any, answer: Any) -> Any:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        return answer


class OverTheWire(FakeInference):
    """As HttpBackend: a request must be packed, and read by a backend."""

    async def run(self, request: AnyRequest) -> Any:
        return await super().run(_repacked(request))


def _repacked(request: Any) -> Any:
    return messages.unpack_request(messages.pack_request(request), type(request), max_bytes=100_000_000)
