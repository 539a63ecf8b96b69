"""A model whose numbers are NaN answers no request with success: every dialect, over a real engine."""

from __future__ import annotations

import pytest

from shared.dialects.operations import PATHS
from shared.settings import Settings
from tests.apps import client_over_models
from tests.functions.api.bodies import ASKED, GOOD, NUMERIC, filled
from tests.tiny import Tiny, publish_all

pytestmark = pytest.mark.anyio

BAD = "w1 w7"
WITHOUT_NUMBERS = {"/tokenize", "/decode", "/embed_all", "/embed_sparse"}
SPELLED_ALIKE = {"/embeddings", "/openai/v1/embeddings", "/openai/deployments/{model}/embeddings"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("broken")
    tinies = [
        Tiny("embedder", broken=("w7",)),
        Tiny("scorer", task="cross-encoder", broken=("w7",)),
        Tiny("all-broken", broken=("[CLS]",)),
        Tiny("all-broken-scorer", task="cross-encoder", broken=("[CLS]",)),
    ]
    publish_all(tinies, f"file://{folder / 'models'}")
    return Settings(model_store=f"file://{folder / 'models'}", cache_dir=folder / "cache", threads=1)


@pytest.mark.parametrize(("path", "model"), ASKED)
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
    assert "null" not in good.text or path == "/azure-search"


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
