"""Inference over fakes: what it asks of cache, tokenizer and batcher, and what it answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from msgspec.structs import replace

from functions.backend.build import build_inference
from shared.cards import ModelCard
from shared.contracts import (
    EmbedRequest,
    FloatMatrix,
    PredictRequest,
    RerankRequest,
    TokenizeRequest,
    Tokens,
)
from shared.engines.cpu import capacity
from shared.engines.onnx import OnnxEngine
from shared.errors import InputTooLong, InvalidInput, Overloaded, PayloadTooLarge, UnknownModel
from shared.inference.batcher import Batcher
from shared.inference.model_cache import ModelCache
from shared.inference.service import Inference
from shared.inference.steps import Steps
from shared.inference.turns import Turns
from shared.models.catalogue import Catalogue
from shared.routing.dispatch import Dispatcher
from shared.routing.policy import fixed
from shared.settings import Settings
from tests.fakes.catalogue import FakeCatalogue
from tests.fakes.models import FakeCache, FakeModel, FakeReranker

pytestmark = pytest.mark.anyio


LISTED = [ModelCard(name, "r1", "cpu-int8", "bert", "mean", 2, 16) for name in ("b", "a")]


class Served:
    def __init__(self, max_queue_tokens: int = 10**6) -> None:
        self.model = FakeModel("a")
        self.cache = FakeCache(
            self.model, FakeReranker("ranker", "LABEL_0"), FakeReranker("classifier", "no", "yes")
        )
        self.batcher = Batcher(
            threads=1,
            budget_tokens=64,
            max_texts=8,
            max_bytes=1000,
            max_wait_s=0,
            max_queue_tokens=max_queue_tokens,
            max_queue_s=100,
        )
        self.inference = Inference(
            cast(Catalogue, FakeCatalogue(LISTED)),
            cast(ModelCache, self.cache),
            self.batcher,
            Turns(2, 10),
            5000,
        )


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.batcher.close()


async def test_a_request_becomes_vectors_counts_and_timings(served: Served) -> None:
    """Normalised by default; the counts are the ids fed; the model is leased while it runs."""
    result = await served.inference.run(EmbedRequest("a", ("abc", "a", (1, 2, 3, 4))))
    assert result.token_counts == (3, 1, 4)
    assert result.total_tokens == 8
    assert (result.model, result.revision, result.max_tokens) == ("a", "r1", 16)
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
    assert (await served.inference.run(request)).vectors.tolist() == [[3.0]]


@pytest.mark.parametrize(("length", "on_the_loop"), [(10, True), (4000, False)])
async def test_long_requests_are_tokenised_off_the_loop(
    served: Served, length: int, on_the_loop: bool
) -> None:
    """Short ones inline, long ones in a thread."""
    used: list[threading.Thread] = []

    def tokenize(request: EmbedRequest) -> Steps[list[list[int]]]:
        used.append(threading.current_thread())
        yield
        return [[1]]

    served.model.tokenize = tokenize  # type: ignore[method-assign]
    await served.inference.run(EmbedRequest("a", ("x" * length,)))
    assert (used == [threading.current_thread()]) == on_the_loop


async def test_tokenising_ends_with_the_step_in_which_its_caller_leaves(served: Served) -> None:
    """A text that takes many steps; after the deadline none is begun, and others have their turn."""
    begun, go_on = threading.Event(), threading.Event()
    taken: list[int] = []

    def tokenize(request: EmbedRequest) -> Steps[list[list[int]]]:
        for step in range(100):
            taken.append(step)
            begun.set()
            go_on.wait(10)
            yield
        return [[1]]

    served.model.tokenize, plain = tokenize, served.model.tokenize  # type: ignore[method-assign]
    embedding = asyncio.create_task(served.inference.run(EmbedRequest("a", ("x" * 4000,))))
    await asyncio.to_thread(begun.wait, 10)
    embedding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await embedding
    go_on.set()
    served.model.tokenize = plain  # type: ignore[method-assign]
    await served.inference.run(EmbedRequest("a", ("x" * 4000,)))
    assert taken == [0]
    assert served.model.leases == 0


async def test_too_many_tokens_are_refused_and_nothing_runs(served: Served) -> None:
    """Over max_request_tokens: 413 that names the field; the lease ends."""
    with pytest.raises(PayloadTooLarge, match=r"5001 tokens.* 5000:") as refused:
        await served.inference.run(EmbedRequest("a", ("x" * 3000, "y" * 2001)))
    assert refused.value.field == "input"
    assert served.model.leased_while_embedding == []
    assert served.model.leases == 0


@pytest.mark.parametrize(
    "request_",
    [
        EmbedRequest("a", ("x" * 16,) * 2000),
        RerankRequest("ranker", "q" * 15, ("d",) * 2000),
        RerankRequest("a", "q", ("d" * 16,) * 2000),
        PredictRequest("classifier", ("x" * 16,) * 2000),
    ],
    ids=lambda request: f"{type(request).__name__} {request.model}",
)
async def test_what_has_too_many_tokens_is_not_tokenised_to_its_end(
    served: Served, monkeypatch: pytest.MonkeyPatch, request_: Any
) -> None:
    """A short body can be many tokens: a query is read with each document. Both numbers are said."""
    held = 0

    def counting(tokenize: Any) -> Any:
        def counted(self: Any, request: Any) -> Any:
            nonlocal held
            rows = yield from tokenize(self, request)
            held += sum(map(len, rows))
            return rows

        return counted

    monkeypatch.setattr(FakeModel, "tokenize", counting(FakeModel.tokenize))
    for name in ("tokenize_pairs", "tokenize_inputs"):
        monkeypatch.setattr(FakeReranker, name, counting(getattr(FakeReranker, name)))
    with pytest.raises(PayloadTooLarge, match=r"at least \d+ tokens.* 5000:"):
        await served.inference.run(request_)
    assert 5000 < held <= 10_000


async def test_an_error_in_a_later_slice_names_the_text_as_the_caller_numbered_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """312 texts of sixteen tokens are looked at at once."""

    def tokenize(self: FakeModel, request: EmbedRequest) -> Steps[list[list[int]]]:
        yield
        if "bad" in request.inputs:
            index = request.inputs.index("bad")
            raise InvalidInput("no", field=f"input[{index}]")
        return [[1]] * len(request.inputs)

    monkeypatch.setattr(FakeModel, "tokenize", tokenize)
    with pytest.raises(InvalidInput) as caught:
        await served.inference.run(EmbedRequest("a", (*("x",) * 700, "bad")))
    assert caught.value.field == "input[700]"


async def test_far_too_many_characters_are_refused_unread(served: Served) -> None:
    """Tokenising megabytes only to refuse them would keep a core busy for seconds."""
    served.model.tokenize = lambda request: pytest.fail("it was tokenised")  # type: ignore[method-assign]
    with pytest.raises(PayloadTooLarge, match="characters") as refused:
        await served.inference.run(EmbedRequest("a", ("x" * 80_001,)))
    assert refused.value.field == "input"


async def test_a_full_queue_refuses_before_anything_is_tokenised(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under overload most requests are refused: they must cost next to nothing."""

    def refuse(tokens: int) -> None:
        raise Overloaded("too many requests are waiting: retry later")

    monkeypatch.setattr(served.batcher, "reserve", refuse)
    monkeypatch.setattr(served.model, "tokenize", lambda request: pytest.fail("it was tokenised"))
    with pytest.raises(Overloaded):
        await served.inference.run(EmbedRequest("a", ("abc",)))


@pytest.mark.parametrize(
    "request_",
    [
        EmbedRequest("a", ("abc",) * 600),
        EmbedRequest("a", ((1, 2, 3),) * 600),
        RerankRequest("ranker", "q", ("ab",) * 600),
        RerankRequest("a", "query", ("abc",) * 600),
        PredictRequest("classifier", ("abc",) * 600),
        TokenizeRequest("a", ("abc",) * 600),
    ],
    ids=lambda request: f"{type(request).__name__} {request.model}",
)
async def test_what_may_succeed_is_let_in_as_a_whole(request_: Any) -> None:
    """A request larger than the queue is answered by an idle process, and the router adds no limit."""
    served = Served(max_queue_tokens=10)
    dispatcher = Dispatcher(
        {"cpu": served.inference},
        cast(Catalogue, FakeCatalogue(LISTED)),
        fixed(10),
        part_texts=100,
        concurrency={},
        max_queue_s=0.001,
        max_request_tokens=5000,
        patience_s=15,
        gpu_idle_s=300,
    )
    for _ in range(2):  # the second time the rate is known
        assert len((await dispatcher.run(request_)).token_counts) == 600
    served.batcher.close()


async def test_an_unknown_model_is_unknown(served: Served) -> None:
    """What the cache raises comes through."""
    with pytest.raises(UnknownModel):
        await served.inference.run(EmbedRequest("z", ("x",)))


async def test_a_rerankers_scores_are_sigmoids_or_logits(served: Served) -> None:
    """In the documents' order; raw on request; the counts are those of the pairs."""
    request = RerankRequest("ranker", "query", ("abcde", "a"))
    result = await served.inference.run(request)
    assert result.scores.tolist() == pytest.approx([0.5, 1 / (1 + np.exp(4))])
    assert (result.method, result.token_counts) == ("cross-encoder", (10, 6))
    raw = await served.inference.run(replace(request, raw_scores=True))
    assert raw.scores.tolist() == [0, -4]


async def test_logits_whose_sigmoids_tie_are_still_ranked(served: Served) -> None:
    """From 17 on float32 has one sigmoid for all, float64 from 37 on; equals stay in their order."""
    documents = tuple("d" * (10 + logit - 1) for logit in (17, 19, 18, 50, 51, 51))
    result = await served.inference.run(RerankRequest("ranker", "q", documents))
    assert result.ranking == [4, 5, 3, 1, 2, 0]
    assert 1 - result.scores[2] == pytest.approx(1.52e-8, rel=1e-2)
    assert result.logits is not None
    assert result.logits.tolist() == [17, 19, 18, 50, 51, 51]


async def test_an_embedding_model_reranks_by_cosine_and_says_so(served: Served) -> None:
    """The prompts for queries and documents are used; the query's tokens count with the first."""
    asked: list[EmbedRequest] = []
    tokenize = served.model.tokenize
    served.model.tokenize = lambda request: asked.append(request) or tokenize(request)  # type: ignore[func-returns-value, method-assign]
    result = await served.inference.run(RerankRequest("a", "abc", ("abc", "a")))
    assert result.method == "cosine"
    assert result.scores.tolist() == pytest.approx([1, 4 / np.sqrt(20)])
    assert result.token_counts == (6, 1)
    assert [request.input_type for request in asked] == ["query", "document"]
    with pytest.raises(InvalidInput) as refused:
        await served.inference.run(RerankRequest("a", "q", ("d",), max_document_tokens=3))
    assert refused.value.field == "max_document_tokens"


@pytest.mark.parametrize(("query", "field"), [("q" * 99, "query"), ("q", "documents[1]")])
async def test_too_long_texts_of_a_cosine_rerank_have_their_own_names(
    served: Served, monkeypatch: pytest.MonkeyPatch, query: str, field: str
) -> None:
    """An embedding model speaks of input[i]; who reranks sent a query and documents."""

    def tokenize(self: FakeModel, request: EmbedRequest) -> Steps[list[list[int]]]:
        for index, item in enumerate(request.inputs):
            if len(item) > 16:
                raise InputTooLong("too long", field=f"input[{index}]")
        yield
        return [[1]] * len(request.inputs)

    monkeypatch.setattr(FakeModel, "tokenize", tokenize)
    with pytest.raises(InputTooLong) as caught:
        await served.inference.run(RerankRequest("a", query, ("d", "d" * 99), truncate=False))
    assert caught.value.field == field


async def test_an_opposite_is_nearer_than_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty document comes after a text whose cosine is -1, though it stands before it."""

    def run(sequences: Sequence[Tokens]) -> FloatMatrix:
        return np.array([[1, 0] if len(tokens) == 1 else [-1, 0] for tokens in sequences], np.float32)

    monkeypatch.setattr(served.model, "run", run)
    result = await served.inference.run(RerankRequest("a", "q", ("", "dd", "d")))
    assert result.scores.tolist() == pytest.approx([-1, -1, 1])
    assert result.ranking == [2, 1, 0]


async def test_predictions_are_probabilities_or_logits_of_each_label(served: Served) -> None:
    """Softmax over several labels, sigmoid of one; raw on request."""
    request = PredictRequest("classifier", ("a" * 10, "b" * 12))
    result = await served.inference.run(request)
    assert result.labels == ("no", "yes")
    np.testing.assert_allclose(result.scores.sum(axis=1), [1, 1], rtol=1e-6)
    assert result.scores[0, 0] == pytest.approx(1 / (1 + np.exp(-1)))
    raw = await served.inference.run(replace(request, raw_scores=True))
    assert raw.scores.tolist() == [[0, -1], [2, 1]]
    one = await served.inference.run(PredictRequest("ranker", ("a" * 10,)))
    assert one.scores.tolist() == [[0.5]]


async def test_tokens_are_told_without_a_batch(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run and a full queue is no hindrance; what is too much is refused as elsewhere."""
    monkeypatch.setattr(served.batcher, "reserve", lambda tokens: pytest.fail("it asked the queue"))
    result = await served.inference.run(TokenizeRequest("a", ("ab", "c")))
    assert (result.texts, result.token_counts) == (("a", "b", "c"), (2, 1))
    assert result.spans[:, 0].tolist() == [97, 98, 99]
    assert (result.model, result.revision, result.device) == ("a", "r1", "cpu")
    assert result.timings.tokenization_s > 0
    assert served.model.leased_while_embedding == []
    with pytest.raises(PayloadTooLarge) as refused:
        await served.inference.run(TokenizeRequest("a", ("x" * 3000, "y" * 2001)))
    assert refused.value.field == "inputs"
    assert served.model.leases == 0


async def test_states_name_loaded_and_unloaded_models(served: Served) -> None:
    """What the cache does not know is cold."""
    states = await served.inference.states()
    assert [(s.name, s.state, s.revision) for s in states] == [
        ("a", "warm", "r1"),
        ("b", "cold", None),
        ("classifier", "warm", "r1"),
        ("ranker", "warm", "r1"),
    ]


async def test_close_stops_batcher_and_cache(served: Served) -> None:
    """Both are closed; the batcher takes nothing more."""
    await served.inference.close()
    assert served.cache.closed
    assert not any(thread.is_alive() for thread in served.batcher._threads)


async def test_settings_build_the_real_thing(minilm_store: Path) -> None:
    """A published model is found, loaded and embeds; near texts are nearer than far ones."""
    settings = Settings(model_store=f"file://{minilm_store}", threads=1)
    inference = build_inference(settings, "cpu", OnnxEngine, capacity())
    try:
        name = "all-MiniLM-L6-v2"
        texts = ("a cat sits on the mat", "a kitten on a rug", "quarterly revenue fell")
        result = await inference.run(EmbedRequest(name, texts))
        alone = await inference.run(EmbedRequest(name, texts[:1]))
        states = await inference.states()
    finally:
        await inference.close()
    assert result.vectors.shape == (3, 384)
    assert result.vectors[0] @ result.vectors[1] > result.vectors[0] @ result.vectors[2] + 0.2
    np.testing.assert_allclose(alone.vectors[0], result.vectors[0], atol=1e-6)
    assert [state.state for state in states] == ["warm"]
