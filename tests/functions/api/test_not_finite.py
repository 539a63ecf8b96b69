"""A model whose numbers are NaN answers no request with success: every dialect, over a real engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from functions.api.app import create_app
from functions.backend.build import build_inference
from shared.dialects.operations import PATHS
from shared.engines.onnx import OnnxEngine, capacity
from shared.models.catalogue import Catalogue
from shared.models.store import open_store
from shared.observability.metrics import Telemetry
from shared.settings import Settings
from tests.tiny import Tiny, publish_all

pytestmark = pytest.mark.anyio

GOOD, BAD = "w1 w2", "w1 w7"
EMBEDDERS, SCORERS = ("embedder",), ("scorer",)
BODIES: dict[str, tuple[tuple[str, ...], Any, str]] = {
    # body of "%", where the text goes that has no numbers, and what the error calls it.
    "/v1/embeddings": (EMBEDDERS, {"input": [GOOD, "%"]}, "input[1]"),
    "/embed": (EMBEDDERS, {"inputs": [GOOD, "%"]}, "inputs[1]"),
    "/similarity": (
        EMBEDDERS,
        {"inputs": {"source_sentence": GOOD, "sentences": [GOOD, "%"]}},
        "inputs.sentences[1]",
    ),
    "/": (EMBEDDERS, {"inputs": "%"}, "inputs[0]"),
    "/v2/embed": (EMBEDDERS, {"texts": [GOOD, "%"], "embedding_types": ["int8"]}, "texts[1]"),
    "/v1/embed": (EMBEDDERS, {"texts": [GOOD, "%"]}, "texts[1]"),
    "/api/embed": (EMBEDDERS, {"input": [GOOD, "%"]}, "input[1]"),
    "/api/embeddings": (EMBEDDERS, {"prompt": "%"}, "prompt"),
    "/infinity/rerank": (SCORERS, {"query": GOOD, "documents": [GOOD, "%"]}, "documents[1]"),
    "/azure-search": (
        EMBEDDERS,
        {"values": [{"recordId": "a", "data": {"text": "%"}}]},
        "values[0]",
    ),
    "/predict": (SCORERS, {"inputs": [[GOOD], ["%"]]}, "inputs[1]"),
    "/rerank": (EMBEDDERS + SCORERS, {"query": GOOD, "texts": [GOOD, "%"]}, "texts[1]"),
    "/v1/rerank": (EMBEDDERS + SCORERS, {"query": GOOD, "documents": [GOOD, "%"]}, "documents[1]"),
    "/v2/rerank": (EMBEDDERS + SCORERS, {"query": GOOD, "documents": [GOOD, "%"]}, "documents[1]"),
}
ASKED = [(path, model) for path, (models, _, _) in BODIES.items() for model in models]
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


@asynccontextmanager
async def client_of(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    inference = build_inference(settings, "cpu", OnnxEngine, capacity())
    app = create_app(
        settings,
        inference,
        Catalogue(open_store(settings), ("cpu",)),
        Telemetry(CollectorRegistry()),
    )
    transport = httpx.ASGITransport(app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client
    finally:
        await inference.close()


def filled(body: Any, text: str) -> Any:
    return json.loads(json.dumps(body).replace("%", text))


@pytest.mark.parametrize(("path", "model"), ASKED)
async def test_a_text_without_numbers_is_an_error_that_names_it(
    settings: Settings, path: str, model: str
) -> None:
    """And the same request without that text is answered: the model is not at fault as a whole."""
    _, body, field = BODIES[path]
    async with client_of(settings) as client:
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
    async with client_of(settings) as client:
        body = {"model": "embedder", "query": BAD, "documents": [GOOD]}
        refused = await client.post("/v1/rerank", json=body)
    assert refused.status_code == 500
    assert "query" in refused.json()["message"]


@pytest.mark.parametrize("model", ["all-broken", "all-broken-scorer"])
async def test_a_model_without_numbers_is_never_warm(settings: Settings, model: str) -> None:
    """It is tried when it is loaded; /ready tells why."""
    async with client_of(settings) as client:
        asked = await client.post("/rerank", json={"model": model, "query": "w1", "texts": ["w2"]})
        ready = await client.get("/ready")
    assert asked.status_code == 503
    assert "NaN or infinite" in asked.text
    assert "NaN or infinite" in ready.text


def test_every_path_is_tried() -> None:
    """A new dialect needs a line above, unless it has no numbers or shares another path's dialect."""
    assert set(PATHS) - SPELLED_ALIKE - WITHOUT_NUMBERS == set(BODIES)
