"""A model whose numbers are NaN answers no request with success: every dialect, over a real engine."""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np
import pytest

from shared.dialects.body import JSON
from shared.dialects.operations import PATHS
from shared.settings import Settings
from shared.wire.codec import CONTENT_TYPE, unpack
from tests.apps import client_over_models
from tests.functions.api.bodies import ASKED, GOOD, NUMERIC, filled
from tests.tiny import Tiny, publish_all

pytestmark = pytest.mark.anyio

BAD = "w1 w7"
ALONE = {"/azure-search"}
"""Dialects of records: see test_a_record_that_the_model_fails_at_fails_alone."""
WITHOUT_NUMBERS = {"/tokenize", "/decode"}
SPELLED_ALIKE = {"/embeddings", "/openai/v1/embeddings", "/openai/deployments/{model}/embeddings"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("broken")
    tinies = [
        Tiny("embedder", broken=("w7",)),
        Tiny("scorer", task="cross-encoder", broken=("w7",)),
        Tiny("sparse", task="sparse", broken=("w7",)),
        Tiny("late", task="multi-vector", broken=("w7",)),
        Tiny("all-broken", broken=("[CLS]",)),
        Tiny("all-broken-scorer", task="cross-encoder", broken=("[CLS]",)),
    ]
    publish_all(tinies, f"file://{folder / 'models'}")
    return Settings(model_store=f"file://{folder / 'models'}", cache_dir=folder / "cache", threads=1)


@pytest.mark.parametrize(("path", "model"), [asked for asked in ASKED if asked[0] not in ALONE])
async def test_a_text_without_numbers_is_an_error_that_names_it(
    settings: Settings, path: str, model: str
) -> None:
    """And the same request without that text is answered: the model is not at fault as a whole."""
    _, body, field = NUMERIC[path]
    async with client_over_models(settings) as client:
        params = {"model": model}
        bad = await client.post(path, params=params, json=filled(body, BAD))
        good = await client.post(path, params=params, json=filled(body, GOOD))
    assert bad.status_code == 500
    assert model in bad.text
    assert field in bad.text
    assert "NaN" in bad.text
    assert good.status_code == 200
    assert "null" not in good.text


@pytest.mark.parametrize("texts", [[BAD], [GOOD, BAD], [BAD, GOOD, "", BAD, "w3", BAD, "w4"], [BAD] * 5])
@pytest.mark.parametrize("encoding", [JSON, CONTENT_TYPE])
async def test_a_record_that_the_model_fails_at_fails_alone(
    settings: Settings, texts: list[str], encoding: str
) -> None:
    """As one that is malformed does; the others have the vectors that they have by themselves."""
    values = [{"recordId": str(n), "data": {"text": text}} for n, text in enumerate(texts)]
    good = [text for text in texts if text not in ("", BAD)]
    async with client_over_models(settings) as client:
        url, headers = "/azure-search?model=embedder", {"accept": encoding}
        response = await client.post(url, json={"values": values}, headers=headers)
        alone = await client.post("/embed", json={"model": "embedder", "inputs": good or GOOD})
    assert response.status_code == 200
    read = msgspec.json.decode if encoding == JSON else partial(unpack, max_bytes=10**6)
    records = read(response.content)["values"]
    assert [record["recordId"] for record in records] == [str(n) for n in range(len(texts))]
    vectors = [record["data"]["vector"] for record in records if not record["errors"]]
    assert np.allclose(vectors, alone.json()[: len(good)], atol=1e-6)
    for text, record in zip(texts, records, strict=True):
        messages = [each["message"] for each in record["errors"] or []]
        assert len(messages) == (text in ("", BAD))
        assert all("data.text" in message and "input[" not in message for message in messages)
        assert all("NaN" in message for message in messages if text == BAD)


async def test_a_query_without_numbers_is_named(settings: Settings) -> None:
    """Its vector is compared with all the others."""
    async with client_over_models(settings) as client:
        body = {"model": "embedder", "query": BAD, "documents": [GOOD]}
        refused = await client.post("/v1/rerank", json=body)
    assert refused.status_code == 500
    assert "query" in refused.json()["message"]


@pytest.mark.parametrize("model", ["all-broken", "all-broken-scorer"])
async def test_a_model_without_numbers_is_never_warm(settings: Settings, model: str) -> None:
    """It is tried when it is loaded; /ready tells why."""
    async with client_over_models(settings) as client:
        asked = await client.post("/rerank", json={"model": model, "query": "w1", "texts": ["w2"]})
        ready = await client.get("/ready")
    assert asked.status_code == 503
    assert "NaN or infinite" in asked.text
    assert "NaN or infinite" in ready.text


def test_every_path_is_tried() -> None:
    """A new dialect needs a line above, unless it has no numbers or shares another path's dialect."""
    assert set(PATHS) - SPELLED_ALIKE - WITHOUT_NUMBERS == set(NUMERIC)
