"""What was done otherwise than a caller may think is told: cut texts, prompts that there are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.settings import Settings
from tests.apps import client_over_models
from tests.functions.api.bodies import ASKED, GOOD, NUMERIC, filled
from tests.tiny import MAX_TOKENS, Tiny, publish_all

pytestmark = pytest.mark.anyio

FIRST = {"/", "/azure-search", "/api/embeddings"}
TEXTS = ["w1 w2", "w3"]
Read = Callable[[Any, str], Any]


def _of_cohere(answer: Any, kind: str) -> Any:
    return answer["embeddings"][kind]


def _of_openai(answer: Any, _: str) -> Any:
    return [each["embedding"] for each in answer["data"]]


PAIRED = {"/rerank", "/v1/rerank", "/v2/rerank", "/infinity/rerank"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("told")
    tinies = [
        Tiny("embedder"),
        Tiny("prompted", prompts={"query": "w1 "}),
        Tiny("scorer", task="cross-encoder"),
        Tiny("sparse", task="sparse"),
        Tiny("late", task="multi-vector"),
        Tiny("calibrated", int8_ranges={16: 0.5, 8: 0.75}),
    ]
    publish_all(tinies, f"file://{folder / 'models'}")
    return Settings(
        model_store=f"file://{folder / 'models'}", cache_dir=Path(folder / "cache"), threads=1
    )


def _words(path: str, model: str) -> int:
    """How many fit, beside special tokens and the query."""
    return MAX_TOKENS - (3 + len(GOOD.split()) if path in PAIRED and model == "scorer" else 2)


@pytest.mark.parametrize(("path", "model"), ASKED)
async def test_a_text_that_was_cut_is_told(settings: Settings, path: str, model: str) -> None:
    """By its index in what was sent; one that just fits is not; /similarity's first is the source."""
    body = NUMERIC[path][1]
    words = _words(path, model)
    async with client_over_models(settings) as client:
        params = {"model": model}
        fits = await client.post(path, params=params, json=filled(body, "w1 " * words))
        cut = await client.post(path, params=params, json=filled(body, "w1 " * (words + 1)))
    assert (fits.status_code, cut.status_code) == (200, 200)
    assert "x-truncated" not in fits.headers
    index = 0 if path in FIRST else 2 if path == "/similarity" else 1
    assert cut.headers["x-truncated"] == f"1; {index}"
    if path in ("/v1/rerank", "/v2/rerank", "/v1/embed", "/v2/embed"):
        field = "text" if "embed" in path else "document"
        told = f"1 {field} was truncated to the model's limit: 1"
        assert told in cut.json()["meta"]["warnings"]
    if path == "/azure-search":
        assert "was truncated" in cut.json()["values"][0]["warnings"][0]["message"]


@pytest.mark.parametrize("model", ["embedder", "scorer"])
async def test_of_a_query_that_was_cut_every_document_is_told(settings: Settings, model: str) -> None:
    """Each score is of the part that was read."""
    async with client_over_models(settings) as client:
        body = {"model": model, "query": "w1 " * 600, "documents": ["w2", "w3"]}
        answer = await client.post("/v1/rerank", json=body)
    assert answer.headers["x-truncated"] == "2; 0,1"


async def test_of_many_that_were_cut_the_first_are_named(settings: Settings) -> None:
    """A header has its limits; the number is exact, and so is the metric."""
    async with client_over_models(settings) as client:
        body = {"model": "embedder", "inputs": ["w1 " * 600] * 101}
        answer = await client.post("/embed", json=body)
        metrics = (await client.get("/metrics")).text
    count, _, named = answer.headers["x-truncated"].partition("; ")
    assert count == "101"
    assert named == ",".join(map(str, range(100))) + ",..."
    assert 'blitz_truncated_inputs{model="embedder"} 101.0' in metrics


@pytest.mark.parametrize(
    ("path", "fields", "meta"),
    [
        ("/v2/embed", {"texts": ["w1"], "input_type": "search_document"}, True),
        ("/v1/embed", {"texts": ["w1"], "input_type": "classification"}, True),
        ("/v1/embeddings", {"input": "w1", "input_type": "document"}, False),
        ("/v1/embeddings", {"input": "w1", "task": "text-matching"}, False),
    ],
)
@pytest.mark.parametrize("model", ["embedder", "prompted"])
async def test_what_a_text_is_for_is_told_to_change_nothing(
    settings: Settings, path: str, fields: dict[str, Any], meta: bool, model: str
) -> None:
    """Where the model has no prompt for it; those there are are named."""
    async with client_over_models(settings) as client:
        answer = await client.post(path, json={"model": model, **fields})
    assert answer.status_code == 200
    told = answer.headers["x-warning"]
    assert " has no effect: " in told
    assert ("are query" if model == "prompted" else "has no prompts") in told
    if meta:
        assert told in answer.json()["meta"]["warnings"]


async def test_a_prompt_that_there_is_is_not_told(settings: Settings) -> None:
    """Nor one that is switched off."""
    async with client_over_models(settings) as client:
        body = {"model": "prompted", "input": "w1"}
        used = await client.post("/v1/embeddings", json={**body, "input_type": "query"})
        off = await client.post(
            "/v1/embeddings", json={**body, "input_type": "query", "prompt_name": ""}
        )
        bare = await client.post("/v1/embeddings", json=body)
    assert {"x-warning"} & {*used.headers, *off.headers, *bare.headers} == set()
    assert used.json()["data"] != bare.json()["data"]
    assert off.json()["data"] == bare.json()["data"]


TOO_LONG = "w1 " * MAX_TOKENS
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    # path, body, what the error names, what its message says
    ("/v1/embeddings", {"input": "w1", "dimensions": 99}, "dimensions", "dimensions: ask for 1 to"),
    (
        "/v1/embeddings",
        {"input": "w1", "output_dimension": 99},
        "output_dimension",
        "output_dimension: ",
    ),
    ("/v1/embeddings", {"input": TOO_LONG, "truncate": False}, "input[0]", "or set truncate"),
    ("/v1/embeddings", {"input": TOO_LONG, "truncation": False}, "input[0]", "or set truncation"),
    ("/v2/embed", {"texts": ["w1"], "output_dimension": 99}, "", "output_dimension: ask for 1 to"),
    ("/embed", {"inputs": "w1", "dimensions": 99}, "", "dimensions: ask for 1 to"),
    ("/embed", {"inputs": TOO_LONG, "truncate": False}, "", "or set truncate"),
    ("/api/embed", {"input": "w1", "dimensions": 99}, "", "dimensions: ask for 1 to"),
    ("/api/embed", {"input": TOO_LONG, "truncate": False}, "", "or set truncate"),
    ("/v1/rerank", {"query": "w1", "documents": [TOO_LONG], "truncation": False}, "", "set truncation"),
    ("/rerank", {"query": "w1", "texts": [TOO_LONG], "truncate": False}, "", "set truncate"),
]


@pytest.mark.parametrize(("path", "body", "param", "message"), REFUSED)
async def test_a_refusal_has_the_field_s_name_that_was_sent(
    settings: Settings, path: str, body: dict[str, Any], param: str, message: str
) -> None:
    """Also of a field that has two names."""
    async with client_over_models(settings) as client:
        refused = await client.post(path, json={"model": "embedder", **body})
    assert refused.status_code in (400, 413, 422)
    assert message in refused.text
    if param:
        assert refused.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("path", "body", "kind", "read"),
    [
        ("/v2/embed", {"texts": TEXTS, "embedding_types": ["int8"]}, "int8", _of_cohere),
        ("/v1/embed", {"texts": TEXTS, "embedding_types": ["uint8"]}, "uint8", _of_cohere),
        (
            "/v2/embed",
            {"texts": TEXTS, "embedding_types": ["int8"], "output_dimension": 8},
            "int8",
            _of_cohere,
        ),
        (
            "/v1/embeddings",
            {"input": TEXTS, "output_dtype": "uint8", "dimensions": 12},
            "uint8",
            _of_openai,
        ),
        (
            "/v1/embeddings",
            {"input": TEXTS, "embedding_type": "int8", "dimensions": 4},
            "int8",
            _of_openai,
        ),
    ],
)
@pytest.mark.parametrize("model", ["calibrated", "embedder"])
async def test_int8_answers_have_the_range_that_is_told(
    settings: Settings, path: str, body: dict[str, Any], kind: str, read: Read, model: str
) -> None:
    """In a header of the answer, and for all lengths at /v1/models; 1 for a model of before."""
    size = body.get("output_dimension") or body.get("dimensions") or 16
    ranges = {16: 0.5, 12: 0.75, 8: 0.75, 4: 1.0} if model == "calibrated" else {}
    async with client_over_models(settings) as client:
        answer = await client.post(path, json={"model": model, **body})
        listed = (await client.get(f"/v1/models/{model}")).json()
    assert answer.status_code == 200, answer.text
    largest = float(answer.headers["x-int8-range"])
    assert largest == ranges.get(size, 1.0)
    assert listed.get("int8_ranges") == ({"16": 0.5, "8": 0.75} if ranges else None)
    exact = np.clip(Tiny(model).vectors(TEXTS, size) * 127 / largest, -127, 127)
    got = np.array(read(answer.json(), kind)) - (128 if kind == "uint8" else 0)
    assert np.abs(got - exact).max() < 0.51
