"""An empty document among others: every rerank dialect, over real models, and a request in parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from functions.backend.build import build_inference
from shared.contracts import RerankRequest
from shared.engines.cpu import capacity
from shared.engines.onnx import OnnxEngine
from shared.errors import InputTooLong
from shared.inference.service import Inference
from shared.models.catalogue import Catalogue
from shared.models.store import open_store
from shared.routing.dispatch import Dispatcher
from shared.routing.policy import fixed
from shared.settings import Settings
from tests.apps import client_over_models
from tests.tiny import MAX_TOKENS, Tiny, publish_all

pytestmark = pytest.mark.anyio

TINIES = {"embedder": Tiny("embedder"), "scorer": Tiny("scorer", task="cross-encoder")}
QUERY, DOCUMENTS = "w1 w2", ["", "w3", " \t\n", "w4 w1", "w2 w5 w6"]
GOOD = [1, 3, 4]
LOWEST = {"embedder": -1.0, "scorer": 0.0}


@dataclass(frozen=True)
class Dialect:
    """documents: the field that has them. ranks: of an answer, (index, score), as they come."""

    name: str
    path: str
    documents: str
    ranks: Callable[[Any], list[tuple[int, float]]]
    more: tuple[tuple[str, Any], ...] = ()
    wraps: Callable[[str], Any] = str
    warns: bool = False

    def body(self, documents: list[str], **more: Any) -> dict[str, Any]:
        texts = [self.wraps(text) for text in documents]
        return {"query": QUERY, self.documents: texts, **dict(self.more), **more}


def _results(answer: Any) -> list[tuple[int, float]]:
    return [(each["index"], each["relevance_score"]) for each in answer["results"]]


DIALECTS = [
    Dialect("TEI", "/rerank", "texts", lambda ranks: [(each["index"], each["score"]) for each in ranks]),
    Dialect("TEI at /", "/", "texts", lambda ranks: [(each["index"], each["score"]) for each in ranks]),
    Dialect("Cohere v1, Jina", "/v1/rerank", "documents", _results, warns=True),
    Dialect("objects", "/v1/rerank", "documents", _results, (), lambda text: {"text": text}, True),
    Dialect("Cohere v2", "/v2/rerank", "documents", _results, warns=True),
    Dialect("vLLM", "/rerank", "documents", _results, (("return_documents", True),), warns=True),
    Dialect("Infinity", "/infinity/rerank", "documents", _results, (("return_documents", True),)),
    Dialect(
        "Voyage",
        "/v1/rerank",
        "documents",
        lambda answer: [(each["index"], each["relevance_score"]) for each in answer["data"]],
        (("truncation", True), ("return_documents", True)),
    ),
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("blank")
    publish_all(TINIES.values(), f"file://{folder / 'models'}")
    return Settings(
        model_store=f"file://{folder / 'models'}", cache_dir=Path(folder / "cache"), threads=1
    )


@pytest.mark.parametrize("model", TINIES)
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_an_empty_document_comes_last_and_fails_no_other(
    settings: Settings, dialect: Dialect, model: str
) -> None:
    """The others have the scores that they have without it; who asks is told which were empty."""
    async with client_over_models(settings) as client:
        body = dialect.body(DOCUMENTS, model=model)
        answer = await client.post(dialect.path, json=body)
    assert answer.status_code == 200, answer.text
    ranks = dialect.ranks(answer.json())
    right = dict(zip(GOOD, TINIES[model].scores(QUERY, [DOCUMENTS[at] for at in GOOD]), strict=True))
    assert [index for index, _ in ranks] == [*sorted(GOOD, key=lambda at: -right[at]), 0, 2]
    assert dict(ranks) == pytest.approx({**right, 0: LOWEST[model], 2: LOWEST[model]}, abs=1e-5)
    told = "2 documents are empty and come last: 0, 2"
    assert answer.headers["x-warning"] == told
    if dialect.warns:
        assert told in answer.json()["meta"]["warnings"]


@pytest.mark.parametrize("model", TINIES)
@pytest.mark.parametrize("documents", [DOCUMENTS, ["", ""]], ids=["some", "all"])
async def test_weaviate_has_a_score_for_each(
    settings: Settings, model: str, documents: list[str]
) -> None:
    """By position; objects without the property never fail a search, not even if there are no others."""
    body = {"model": model, "query": QUERY, "documents": documents, "property": "p"}
    async with client_over_models(settings) as client:
        answer = await client.post("/rerank", json=body)
    scores = answer.json()["scores"]
    assert [each["document"] for each in scores] == documents
    assert {each["score"] for each in scores if not each["document"].strip()} == {LOWEST[model]}
    assert len({each["score"] for each in scores}) == 1 + sum(bool(text.strip()) for text in documents)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("documents", [[""], ["", " "], []])
async def test_only_empty_documents_are_refused(
    settings: Settings, dialect: Dialect, documents: list[str]
) -> None:
    """There would be nothing to rank; the message names the dialect's field."""
    async with client_over_models(settings) as client:
        answer = await client.post(dialect.path, json=dialect.body(documents, model="scorer"))
    assert answer.status_code == 400
    assert f"{dialect.documents} has no text: send at least one" in answer.text


async def test_a_raw_score_of_nothing_is_a_number(settings: Settings) -> None:
    """The lowest that float32 has; minus infinity would be null in JSON. The text comes back."""
    body = {"model": "scorer", "query": QUERY, "texts": DOCUMENTS, "raw_scores": True}
    async with client_over_models(settings) as client:
        ranks = (await client.post("/rerank", json={**body, "return_text": True})).json()
    assert [(each["score"], each["text"]) for each in ranks[3:]] == [
        (-3.4028234663852886e38, ""),
        (-3.4028234663852886e38, " \t\n"),
    ]
    assert all(abs(each["score"]) < 100 for each in ranks[:3])


@pytest.fixture
async def inference(settings: Settings) -> Any:
    made = build_inference(settings, "cpu", OnnxEngine, capacity())
    yield made
    await made.close()


@pytest.mark.parametrize("model", TINIES)
async def test_parts_of_a_request_may_be_all_empty(
    settings: Settings, inference: Inference, model: str
) -> None:
    """A request that is split has the scores, order and counts of one that is not."""
    dispatcher = Dispatcher(
        {"cpu": inference},
        Catalogue(open_store(settings), ("cpu",)),
        fixed(10),
        part_texts=1,
        concurrency={"cpu": 4},
        max_queue_s=10,
        max_request_tokens=10_000,
        patience_s=15,
        gpu_idle_s=300,
    )
    for documents in permutations(DOCUMENTS[:4]):
        request = RerankRequest(model, QUERY, documents)
        whole, parts = await inference.run(request), await dispatcher.run(request)
        assert np.array_equal(whole.scores, parts.scores)
        assert whole.ranking == parts.ranking
        assert {documents[at].strip() for at in whole.ranking[2:]} == {""}
        blank = [not text.strip() for text in documents]
        if model == "scorer":  # of cosines the query is counted too, in a part's first
            assert [count == 0 for count in whole.token_counts] == blank
            assert whole.token_counts == parts.token_counts


@pytest.mark.parametrize("model", TINIES)
async def test_what_is_told_of_a_document_names_it_as_it_was_sent(
    inference: Inference, model: str
) -> None:
    """Not by its place among those that a model saw."""
    long = "w1 " * (MAX_TOKENS + 1)
    request = RerankRequest(model, QUERY, ("", "w1", " ", long))
    assert (await inference.run(request)).cut == (3,)
    request = RerankRequest(model, QUERY, ("", "w1", " ", long), truncate=False)
    with pytest.raises(InputTooLong) as caught:
        await inference.run(request)
    assert caught.value.field == "documents[3]"
