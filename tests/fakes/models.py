"""Models in memory as a batcher and a service use them, and a cache of such models."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import msgspec
import numpy as np

from shared.cards import ModelState
from shared.contracts import (
    EmbedRequest,
    FloatMatrix,
    InputType,
    PredictRequest,
    RerankRequest,
    TokenizeRequest,
    TokenPair,
    Tokens,
)
from shared.errors import UnknownModel
from shared.inference.spelling import Spelling
from shared.inference.steps import Steps
from tests.patience import PATIENCE_S
from tests.tiny import manifest_of

POISON = 666
"""The token that HeldModel cannot run."""


class HeldModel:
    """Row = (first id, length). Holds every batch until `gate` is set; keeps what it was given."""

    bytes_per_token = 0
    batch_tokens = 0

    def __init__(self, *, held: bool = False) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.calls: list[list[list[int]]] = []
        if not held:
            self.gate.set()

    def text_bytes(self, tokens: int) -> int:
        return tokens * self.bytes_per_token

    def run(self, sequences: Sequence[Sequence[int]]) -> FloatMatrix:
        self.calls.append([list(ids) for ids in sequences])
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if any(POISON in ids for ids in sequences):
            raise RuntimeError("internal detail")
        return np.array([[ids[0], len(ids)] for ids in sequences], np.float32)


class FakeModel:
    """Ids are code points, the vector (number of ids, 1)."""

    batch_tokens = 0

    def __init__(self, name: str) -> None:
        self.manifest = manifest_of(name)
        self.leases = 0
        self.leased_while_embedding: list[int] = []

    def text_bytes(self, tokens: int) -> int:
        return 0

    def route(self, prompt_name: str | None, input_type: InputType | None = None) -> FakeModel:
        return self

    def tokenize(self, request: EmbedRequest) -> Steps[list[list[int]]]:
        yield
        return [
            [ord(c) for c in item] if isinstance(item, str) else list(item) for item in request.inputs
        ]

    def spell(self, request: TokenizeRequest, limit: int) -> Steps[list[Spelling]]:
        yield
        return [
            Spelling(np.array([[ord(c), 0, 0, 1] for c in text], np.int32), list(text))
            for text in request.inputs
        ]

    def run(self, sequences: Sequence[Tokens]) -> FloatMatrix:
        self.leased_while_embedding.append(self.leases)
        return np.array([[len(tokens), 1] for tokens in sequences], np.float32)


class FakeReranker(FakeModel):
    """The logit of a pair is its length less ten; `labels` widens it to more logits."""

    def __init__(self, name: str, *labels: str) -> None:
        super().__init__(name)
        self.manifest = msgspec.structs.replace(
            self.manifest, task="cross-encoder", pooling=None, labels=labels, dimensions=len(labels)
        )

    def tokenize_pairs(self, request: RerankRequest) -> Steps[list[TokenPair]]:
        yield
        lengths = [len(request.query) + len(document) for document in request.documents]
        return [TokenPair([1] * length, [0] * length) for length in lengths]

    def tokenize_inputs(self, request: PredictRequest) -> Steps[list[Tokens]]:
        yield
        return [[1] * len(item) for item in request.inputs]

    def run(self, sequences: Sequence[Tokens]) -> FloatMatrix:
        lengths = np.array([[len(tokens)] for tokens in sequences], np.float32)
        labels = np.arange(len(self.manifest.labels), dtype=np.float32)
        return np.subtract(lengths - 10, labels, dtype=np.float32)


class FakeCache:
    def __init__(self, *models: FakeModel) -> None:
        self.models = {model.manifest.name: model for model in models}
        self.closed = False

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[FakeModel]:
        if name not in self.models:
            raise UnknownModel("there is no such model")
        self.models[name].leases += 1
        try:
            yield self.models[name]
        finally:
            self.models[name].leases -= 1

    def states(self, published: Iterable[str]) -> dict[str, ModelState]:
        warm = {name: ModelState(name, "warm", revision="r1") for name in self.models}
        return {name: ModelState(name, "cold") for name in published} | warm

    def close(self) -> None:
        self.closed = True
