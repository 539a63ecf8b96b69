"""Stand-ins that tests of several rooms share: the one place for them."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, Literal

import numpy as np

from shared.cards import Device, ModelCard, ModelState
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
    Timings,
    TokenizeRequest,
    TokenizeResult,
)
from shared.errors import UnknownModel


class ByOperation:
    """A backend that answers with a method an operation: embed, rerank, predict, tokenize."""

    async def run(self, request: AnyRequest) -> Any:
        return await getattr(self, request.operation)(request)


LABELS = ("no", "yes")


TIMINGS = Timings(tokenization_s=0.001, queue_s=0.002, inference_s=0.003)


class FakeBackend(ByOperation):
    """A backend and the catalogue of its models, both at once.

    What it answers depends on nothing but the text. Raises `error` instead if there is one. Models
    named rerank... are cross-encoders of one label, label... of two, sparse... sparse models, late...
    multi-vector ones; the others embed, and rerank by "cosine".
    """

    def __init__(
        self,
        *names: str,
        error: Exception | None = None,
        delay_s: float = 0.0,
        device: Device = "cpu",
    ) -> None:
        self.model_names = names or ("mini",)
        self.error = error
        self.delay_s = delay_s
        self.device = device
        self.requests: list[AnyRequest] = []
        self.model_states = [ModelState(name, "warm") for name in self.model_names]

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        await self._receive(request)
        vectors = np.stack([vector_of(item, request.dimensions or 8) for item in request.inputs])
        return EmbedResult(vectors, _counts(request), request.model, "r1", TIMINGS, self.device)

    async def embed_sparse(self, request: EmbedSparseRequest) -> EmbedSparseResult:
        """Of each input as many words as it has characters, all of weight 0.5."""
        await self._receive(request)
        rows = [
            SparseRow(np.arange(len(item), dtype=np.int32), np.full(len(item), 0.5, np.float32))
            for item in request.inputs
        ]
        told = {"model": request.model, "revision": "r1", "timings": TIMINGS, "device": self.device}
        return EmbedSparseResult.of(rows, token_counts=_counts(request), **told)

    async def embed_tokens(self, request: EmbedTokensRequest) -> EmbedTokensResult:
        """Of each input a vector a character."""
        await self._receive(request)
        rows = [np.stack([vector_of(each, 8) for each in item]) for item in request.inputs]
        told = {"model": request.model, "revision": "r1", "timings": TIMINGS, "device": self.device}
        return EmbedTokensResult.of(rows, token_counts=_counts(request), **told)

    async def rerank(self, request: RerankRequest) -> RerankResult:
        await self._receive(request)
        scores = np.array([score_of(request.query, text) for text in request.documents], np.float64)
        method: Literal["cross-encoder", "cosine"] = (
            "cross-encoder" if request.model.startswith("rerank") else "cosine"
        )
        return RerankResult(scores, _counts(request), request.model, "r1", method, TIMINGS, self.device)

    async def predict(self, request: PredictRequest) -> PredictResult:
        await self._receive(request)
        likely = np.array([score_of("", item) for item in request.inputs], np.float64)
        scores = np.stack([1 - likely, likely], axis=1)
        return PredictResult(scores, _counts(request), request.model, "r1", LABELS, TIMINGS, self.device)

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """A token a character, its own code point, and none special."""
        await self._receive(request)
        texts = tuple(character for text in request.inputs for character in text)
        spans = np.array([(ord(each), 0, 0, 1) for each in texts], np.int32).reshape(-1, 4)
        counts = _counts(request)
        return TokenizeResult(spans, texts, counts, request.model, "r1", TIMINGS, self.device)

    async def decode(self, request: DecodeRequest) -> DecodeResult:
        """An id is a code point of ASCII."""
        await self._receive(request)
        texts = tuple("".join(chr(each % 128) for each in ids) for ids in request.inputs)
        return DecodeResult(texts, _counts(request), request.model, "r1", TIMINGS, self.device)

    async def cards(self) -> list[ModelCard]:
        return [card_of(name) for name in self.model_names]

    async def cards_of(self, name: str) -> list[ModelCard]:
        return [card_of(name)] if name in self.model_names else []

    def check(self) -> None:
        """There is always room."""

    async def states(self) -> list[ModelState]:
        if self.error:
            raise self.error
        return self.model_states

    async def close(self) -> None: ...

    async def _receive(self, request: AnyRequest) -> None:
        self.requests.append(request)
        await asyncio.sleep(self.delay_s)
        if self.error:
            raise self.error
        if request.model not in self.model_names:
            raise UnknownModel.among(self.model_names, request.model)


def card_of(name: str) -> ModelCard:
    labels = {"rerank": ("relevant",), "label-": LABELS}.get(name[:6], ())
    if name.startswith("sparse"):
        return ModelCard(name, "r1", "cpu-int8", "bert", "splade", 30_522, 256, task="sparse")
    if name.startswith("late"):
        return ModelCard(name, "r1", "cpu-int8", "bert", None, 8, 256, task="multi-vector")
    if not labels:
        return ModelCard(name, "r1", "cpu-int8", "bert", "mean", 8, 256)
    return ModelCard(
        name, "r1", "cpu-int8", "bert", None, len(labels), 256, task="cross-encoder", labels=labels
    )


def score_of(query: str, item: Any) -> float:
    """From 0 to 1."""
    return hashlib.sha256(f"{query}|{item}".encode()).digest()[0] / 255


def _counts(request: AnyRequest) -> tuple[int, ...]:
    return tuple(len(item) for item in request.texts)


def vector_of(item: Any, dimensions: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    seed = hashlib.sha256(repr(item).encode()).digest()[:4]
    generator = np.random.default_rng(int.from_bytes(seed, "big"))
    return generator.standard_normal(dimensions, np.float32)
