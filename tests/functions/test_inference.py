"""Inference over fakes: what it asks of cache, tokenizer and batcher, and what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from functions.inference import Inference, build_inference
from shared.batching import Batcher
from shared.contracts import EmbedRequest, FloatMatrix, ModelState
from shared.errors import InvalidArtefact, PayloadTooLarge, UnknownModel
from shared.manifest import SCHEMA_VERSION, Manifest, Source
from shared.model_cache import ModelCache
from shared.model_store import ModelStore
from shared.settings import Settings

pytestmark = pytest.mark.anyio


def manifest_of(name: str) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        revision="r1",
        task="embedding",
        target="cpu-int8",
        architecture="bert",
        source=Source("there", "1"),
        files=(),
        model_file="model.onnx",
        tokenizer_file="tokenizer.json",
        pad_token_id=0,
        max_tokens=16,
        dimensions=2,
        pooling="mean",
        normalize=True,
        prompts={"query": "q: ", "document": "d: "},
    )


class FakeModel:
    """Ids are code points, the vector (number of ids, 1)."""

    def __init__(self, name: str) -> None:
        self.manifest = manifest_of(name)
        self.leases = 0
        self.leased_while_embedding: list[int] = []

    def tokenize(self, request: EmbedRequest) -> list[list[int]]:
        return [
            [ord(c) for c in item] if isinstance(item, str) else list(item) for item in request.inputs
        ]

    def embed(self, sequences: Sequence[Sequence[int]]) -> FloatMatrix:
        self.leased_while_embedding.append(self.leases)
        return np.array([[len(ids), 1] for ids in sequences], np.float32)


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

    def states(self) -> dict[str, ModelState]:
        return {name: ModelState(name, "warm", revision="r1") for name in self.models}

    def close(self) -> None:
        self.closed = True


class FakeStore:
    """Holds a, b, one model for the GPU alone and one whose manifest is broken."""

    def __init__(self) -> None:
        self.listings = 0

    def names(self) -> list[str]:
        self.listings += 1
        return ["gpu-only", "b", "a", "broken"]

    def current(self, name: str, device: str) -> str:
        assert device == "cpu"
        if name == "gpu-only":
            raise UnknownModel("not for this device")
        return "r1"

    def manifest(self, name: str, revision: str) -> Manifest:
        if name == "broken":
            raise InvalidArtefact("the manifest is not valid")
        return manifest_of(name)


class Served:
    def __init__(self) -> None:
        self.model = FakeModel("a")
        self.cache = FakeCache(self.model)
        self.store = FakeStore()
        self.batcher = Batcher(
            threads=1, budget_tokens=64, max_texts=8, max_wait_s=0, max_queue_tokens=10**6
        )
        self.inference = Inference(
            cast(ModelStore, self.store), cast(ModelCache, self.cache), self.batcher, 5000
        )


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.batcher.close()


async def test_a_request_becomes_vectors_counts_and_timings(served: Served) -> None:
    """Normalised by default; the counts are the ids fed; the model is leased while it runs."""
    result = await served.inference.embed(EmbedRequest("a", ("abc", "a", (1, 2, 3, 4))))
    assert result.token_counts == (3, 1, 4)
    assert result.total_tokens == 8
    assert (result.model, result.revision) == ("a", "r1")
    expected = np.array([[3, 1], [1, 1], [4, 1]], np.float32)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(result.vectors, expected, rtol=1e-6)
    assert result.timings.tokenization_s > 0
    assert result.timings.inference_s > 0
    assert served.model.leased_while_embedding == [1]
    assert served.model.leases == 0


async def test_dimensions_and_normalize_are_obeyed(served: Served) -> None:
    """Cut first, then not normalised when the request says so."""
    request = EmbedRequest("a", ("abc",), dimensions=1, normalize=False)
    assert (await served.inference.embed(request)).vectors.tolist() == [[3.0]]


@pytest.mark.parametrize(("length", "threads"), [(10, 0), (4000, 1)])
async def test_long_requests_are_tokenised_off_the_loop(
    served: Served, monkeypatch: pytest.MonkeyPatch, length: int, threads: int
) -> None:
    """Short ones inline, long ones in a thread."""
    used: list[Any] = []
    to_thread = asyncio.to_thread

    async def counting(function: Any, *args: Any) -> Any:
        used.append(function)
        return await to_thread(function, *args)

    monkeypatch.setattr(asyncio, "to_thread", counting)
    await served.inference.embed(EmbedRequest("a", ("x" * length,)))
    assert len(used) == threads


async def test_too_many_tokens_are_refused_and_nothing_runs(served: Served) -> None:
    """Over max_request_tokens: 413 that names the field; the lease ends."""
    with pytest.raises(PayloadTooLarge) as refused:
        await served.inference.embed(EmbedRequest("a", ("x" * 3000, "y" * 2001)))
    assert refused.value.field == "input"
    assert served.model.leased_while_embedding == []
    assert served.model.leases == 0


async def test_an_unknown_model_is_unknown(served: Served) -> None:
    """What the cache raises comes through."""
    with pytest.raises(UnknownModel):
        await served.inference.embed(EmbedRequest("z", ("x",)))


async def test_cards_list_what_can_be_served_here(served: Served) -> None:
    """Sorted; neither a GPU model nor a broken one; one listing for callers at the same time."""
    first, second = await asyncio.gather(served.inference.cards(), served.inference.cards())
    assert [card.name for card in first] == ["a", "b"]
    assert first == second
    assert (first[0].dimensions, first[0].max_tokens) == (2, 16)
    assert first[0].prompts == ("document", "query")
    assert served.store.listings == 1


async def test_states_name_loaded_and_unloaded_models(served: Served) -> None:
    """What the cache does not know is cold."""
    states = await served.inference.states()
    assert [(s.name, s.state, s.revision) for s in states] == [("a", "warm", "r1"), ("b", "cold", None)]


async def test_close_stops_batcher_and_cache(served: Served) -> None:
    """Both are closed; the batcher takes nothing more."""
    await served.inference.close()
    assert served.cache.closed
    assert not any(thread.is_alive() for thread in served.batcher._threads)


async def test_settings_build_the_real_thing(minilm_store: Path) -> None:
    """A published model is found, loaded and embeds; near texts are nearer than far ones."""
    settings = Settings(model_store=f"file://{minilm_store}", threads=1)
    inference = build_inference(settings)
    try:
        (card,) = await inference.cards()
        texts = ("a cat sits on the mat", "a kitten on a rug", "quarterly revenue fell")
        result = await inference.embed(EmbedRequest(card.name, texts))
        alone = await inference.embed(EmbedRequest(card.name, texts[:1]))
        states = await inference.states()
    finally:
        await inference.close()
    assert result.vectors.shape == (3, card.dimensions)
    assert result.vectors[0] @ result.vectors[1] > result.vectors[0] @ result.vectors[2] + 0.2
    np.testing.assert_allclose(alone.vectors[0], result.vectors[0], atol=1e-6)
    assert [state.state for state in states] == ["warm"]
