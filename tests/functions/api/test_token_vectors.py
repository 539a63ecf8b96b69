"""/embed_sparse, /embed_all and MaxSim over HTTP, with tiny models whose every number numpy computes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from shared.settings import Settings
from shared.wire.codec import CONTENT_TYPE, unpack
from tests.apps import client_over_models
from tests.tiny import Tiny, publish_all

pytestmark = pytest.mark.anyio

SPARSE, LATE = Tiny("sparse", task="sparse"), Tiny("late", task="multi-vector")
TEXTS = ["w1 w2", "w3", "w0 w5 w0 w9 w1"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("tokens")
    publish_all([SPARSE, LATE], f"file://{folder / 'models'}")
    return Settings(model_store=f"file://{folder / 'models'}", cache_dir=folder / "cache", threads=1)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with client_over_models(settings) as client:
        yield client


@pytest.mark.parametrize("inputs", [TEXTS, TEXTS[:1], TEXTS[0]], ids=["several", "a list of one", "one"])
async def test_a_sparse_model_gives_weights_that_are_not_0(
    client: httpx.AsyncClient, inputs: list[str] | str
) -> None:
    """As Text Embeddings Inference writes them; without a model's name, the only one for it is asked."""
    answer = await client.post("/embed_sparse", json={"inputs": inputs})
    assert answer.status_code == 200
    texts = [inputs] if isinstance(inputs, str) else inputs
    assert len(answer.json()) == len(texts)
    for row, text in zip(answer.json(), texts, strict=True):
        right = SPARSE.weights(text)
        assert [word["index"] for word in row] == np.flatnonzero(right).tolist()
        assert np.allclose([word["value"] for word in row], right[right > 0], atol=1e-6)


async def test_a_multi_vector_model_gives_each_token_s_vector(client: httpx.AsyncClient) -> None:
    """But for those of skipped tokens; a query is cut to what is read of queries."""
    answer = await client.post("/embed_all", json={"inputs": TEXTS})
    for rows, text in zip(answer.json(), TEXTS, strict=True):
        assert np.allclose(rows, LATE.tokens(text), atol=1e-6)
    long = " ".join(["w1"] * 20)
    asked: tuple[dict[str, str], ...] = (
        {"input_type": "query"},
        {"prompt_name": "query"},
        {"prompt_name": "document"},
        {},
    )
    found = [await client.post("/embed_all", json={"inputs": long, **each}) for each in asked]
    assert [len(each.json()[0]) for each in found] == [8, 8, 22, 22]
    assert [each.headers.get("x-truncated") for each in found] == ["1; 0", "1; 0", None, None]


async def test_columns_come_in_msgpack(client: httpx.AsyncClient) -> None:
    """Of the inputs one behind the other, with how many there are of each."""
    accept = {"accept": CONTENT_TYPE}
    packed = await client.post("/embed_sparse", json={"inputs": TEXTS}, headers=accept)
    sparse = unpack(packed.content, max_bytes=10_000)
    rights = [SPARSE.weights(text) for text in TEXTS]
    assert sparse["counts"].tolist() == [np.count_nonzero(right) for right in rights]
    assert np.allclose(
        sparse["values"], np.concatenate([right[right > 0] for right in rights]), atol=1e-6
    )
    packed = await client.post("/embed_all", json={"inputs": TEXTS}, headers=accept)
    late = unpack(packed.content, max_bytes=10_000)
    assert late["counts"].tolist() == [4, 3, 5]
    assert np.allclose(late["vectors"], np.concatenate([LATE.tokens(text) for text in TEXTS]), atol=1e-6)


async def test_documents_are_ranked_by_max_sim(client: httpx.AsyncClient) -> None:
    """At every rerank; an empty document comes last, below the worst that a text can have."""
    query, documents = "w1 w5", [*TEXTS, "", "w5"]
    right = dict(enumerate(LATE.scores(query, documents)))
    answer = await client.post("/rerank", json={"query": query, "texts": documents, "model": "late"})
    ranks = answer.json()
    assert answer.headers["x-rerank-method"] == "maxsim"
    assert ranks[-1] == {"index": 3, "score": -8.0}
    for rank in ranks[:-1]:
        assert rank["score"] == pytest.approx(right[rank["index"]], abs=1e-5)
    body = {"query": query, "documents": documents, "model": "late"}
    for path, results in (("/v1/rerank", "results"), ("/v2/rerank", "results")):
        other = (await client.post(path, json=body)).json()[results]
        assert [each["index"] for each in other] == [each["index"] for each in ranks]


async def test_an_answer_that_would_be_too_large_is_refused_before_it_is_computed(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens times dimensions; of a sparse model, the words that there are."""
    assert (await client.post("/embed_all", json={"inputs": TEXTS})).status_code == 200
    monkeypatch.setattr("shared.request_size.MAX_NUMBERS", 100)
    ran: list[object] = []
    monkeypatch.setattr("shared.engines.onnx_tokens.TokenVectorsEngine.run", lambda *_: ran.append(1))
    answer = await client.post("/embed_all", json={"inputs": TEXTS})
    assert answer.status_code == 413
    assert "224 numbers, and one may have 100" in answer.json()["error"]
    assert not ran
    monkeypatch.setattr("shared.request_size.MAX_NUMBERS", 3)
    answer = await client.post("/embed_sparse", json={"inputs": TEXTS})
    assert answer.status_code == 413
