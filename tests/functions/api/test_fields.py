"""Every field of every dialect over HTTP: docs/compatibility.md says what becomes of it, and it does."""

from __future__ import annotations

import base64
import re
from typing import Any

import httpx
import numpy as np
import pytest

from shared.dialects.operations import PATHS
from shared.wire import codec
from tests.apps import post, router_client
from tests.fakes.backend import FakeBackend
from tests.server import ROOT

pytestmark = pytest.mark.anyio

TEXTS = ["a", "b", "c"]
BARE: dict[Any, Any] = {
    "/v1/embeddings": {"input": TEXTS},
    "/openai/deployments/mini/embeddings": {"input": TEXTS},
    "/v2/embed": {"texts": TEXTS},
    "/v1/embed": {"texts": TEXTS},
    "/v2/rerank": {"query": "q", "documents": TEXTS},
    "/v1/rerank": {"query": "q", "documents": TEXTS},
    "/infinity/rerank": {"query": "q", "documents": TEXTS},
    "/embed": {"inputs": TEXTS},
    "/": {"inputs": TEXTS},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
    "/embed_sparse": {"inputs": TEXTS},
    "/embed_all": {"inputs": TEXTS},
    "/predict": {"inputs": "a"},
    "/tokenize": {"inputs": TEXTS},
    "/decode": {"ids": [97, 98]},
    "/api/embed": {"input": TEXTS},
    "/api/embeddings": {"prompt": "a"},
    "/azure-search": {"values": [{"recordId": "1", "data": {"text": "a", "other": "b"}}]},
    ("/rerank", "vLLM"): {"query": "q", "documents": TEXTS},
    ("/rerank", "Weaviate"): {"query": "q", "documents": TEXTS},
    ("/rerank", "Text Embeddings Inference"): {"query": "q", "texts": TEXTS},
}
OTHER: dict[str, Any] = {
    # A value of each field that is read which changes what is asked, or what is answered.
    "query": "another",
    "documents": ["d", "e"],
    "texts": ["d", "e"],
    "prompt": "another",
    "property": "p",
    "encoding_format": "base64",
    "dimensions": 4,
    "output_dimension": 4,
    "output_dtype": "int8",
    "embedding_type": "binary",
    "encoding_type": "base64",
    "embedding_types": ["int8"],
    "input_type": "query",
    "task": "retrieval.query",
    "truncate": False,
    "truncation": False,
    "truncation_direction": "Left",
    "normalize": False,
    "normalized": False,
    "prompt_name": "query",
    "top_n": 1,
    "top_k": 1,
    "max_tokens_per_doc": 5,
    "return_documents": True,
    "return_text": True,
    "raw_scores": True,
    "add_special_tokens": False,
    "ids": [[99], [100]],
    "skip_special_tokens": False,
    "parameters": {"truncate": False},
    "values": [{"recordId": "2", "data": {"text": "b"}}],
    "output": "v",
}
OTHER_AT: dict[tuple[str, str], Any] = {
    ("/v1/embeddings", "input"): [{"text": "d"}, "e"],
    ("/openai/deployments/mini/embeddings", "input"): "d",
    ("/api/embed", "input"): "d",
    ("/azure-search", "input"): "other",
    ("/embed", "inputs"): "d",
    ("/", "inputs"): "d",
    ("/embed_sparse", "inputs"): "d",
    ("/embed_all", "inputs"): "d",
    ("/predict", "inputs"): [["a"], ["b", "c"]],
    ("/tokenize", "inputs"): "d",
    ("/similarity", "inputs"): {"source_sentence": "b", "sentences": ["a"]},
    ("/v2/embed", "truncate"): "START",
    ("/v1/embed", "truncate"): "START",
    ("/v2/embed", "input_type"): "search_query",
    ("/v1/embed", "input_type"): "search_query",
    # What is refused has to be of the type that the dialect says.
    ("/v2/embed", "images"): ["x"],
    ("/v1/embed", "images"): ["x"],
    ("/v2/embed", "inputs"): [{}],
    ("/v2/embed", "max_tokens"): 7,
}

Row = tuple[str, str, str, str]
"""Dialect, path, field, and what becomes of it."""


def _rows() -> list[Row]:
    text = (ROOT / "docs" / "compatibility.md").read_text("utf-8").partition("## Fields")[2]
    rows: list[Row] = []
    for line in re.findall(r"(?m)^\|(.*)\|(.*)\|(.*)\|(.*)\|(.*)\|$", text):
        dialect, path, *cells = (cell.strip().strip("`") for cell in line)
        for fate, cell in zip(("read", "refused", "harmless"), cells, strict=True):
            if path.startswith("/"):
                rows += [(dialect, path, name, fate) for name in re.findall(r"\w+", cell)]
    return rows


ROWS = _rows()


async def ask(path: str, body: Any) -> tuple[httpx.Response, FakeBackend]:
    models = {"/predict": "label-2", "/embed_sparse": "sparse-1", "/embed_all": "late-1"}
    backend = FakeBackend("mini", *models.values())
    model = models.get(path, "mini")
    return await post(path, {"model": model, **body}, backend), backend


def _answer(response: httpx.Response) -> Any:
    answer = response.json()
    return {**answer, "id": ""} if isinstance(answer, dict) else answer


@pytest.mark.parametrize(("dialect", "path", "name", "fate"), ROWS)
async def test_a_field_becomes_what_the_table_says(
    dialect: str, path: str, name: str, fate: str
) -> None:
    """Read: it changes what is asked or answered. Refused: by name. Harmless: nothing is different."""
    body = BARE.get((path, dialect)) or BARE[path]
    bare, asked_bare = await ask(path, body)
    assert bare.status_code == 200
    assert "x-warning" not in bare.headers
    other = OTHER_AT.get((path, name)) or (OTHER[name] if fate == "read" else "something")
    response, asked = await ask(path, {**body, name: other})
    if fate == "refused":
        assert response.status_code in (400, 422)
        assert re.search(rf"\b{name}\b", response.text)
        assert asked.requests == []
        return
    assert response.status_code == 200
    assert "not read" not in response.headers.get("x-warning", "")
    is_same = asked.requests == asked_bare.requests and _answer(response) == _answer(bare)
    assert is_same == (fate == "harmless")


def test_every_path_has_a_row() -> None:
    """But for those that are other spellings of one that has."""
    spelled_alike = {"/embeddings", "/openai/v1/embeddings", "/openai/deployments/{model}/embeddings"}
    assert set(PATHS) - spelled_alike <= {path for _, path, _, _ in ROWS}


NOTHING: list[Any] = [None, "", [], {}]


@pytest.mark.parametrize("value", NOTHING)
@pytest.mark.parametrize("name", ["late_chunking", "rank_fields", "input_type", "something_new"])
async def test_a_field_that_says_nothing_is_never_refused(name: str, value: Any) -> None:
    """Clients send explicit nulls, and empty containers for what their callers left out."""
    response, _ = await ask("/embed", {"inputs": "a", name: value})
    assert response.status_code == 200
    assert "x-warning" not in response.headers


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/embeddings", {"late_chunking": False, "add_special_tokens": True, "normalize": True}),
        ("/v1/embeddings", {"dimensions": 4, "output_dimension": 4, "output_dtype": "float"}),
        ("/embed", {"encoding_format": "float", "output_dtype": "float"}),
        ("/v1/rerank", {"raw_scores": False, "rank_fields": ["text"]}),
    ],
)
async def test_a_value_that_asks_for_what_is_done_anyway_is_taken(path: str, fields: Any) -> None:
    """Clients write out their defaults."""
    response, _ = await ask(path, {**BARE[path], **fields})
    assert response.status_code == 200
    assert "x-warning" not in response.headers


@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack"])
async def test_an_unknown_field_is_ignored_and_told(content_type: str) -> None:
    """By its name, if that may stand in a header."""
    body = {"model": "mini", "input": "a", "flavour": 1, "x\r\nset-cookie: a": 2}
    content = codec.pack(body)
    async with router_client(FakeBackend("mini")) as client:
        if content_type == "application/json":
            response = await client.post("/v1/embeddings", json=body)
        else:
            headers = {"content-type": content_type}
            response = await client.post("/v1/embeddings", content=content, headers=headers)
    assert response.status_code == 200
    assert response.headers["x-warning"] == "unknown fields were ignored: flavour, 1 more"


@pytest.mark.parametrize(
    ("path", "slip", "right"),
    [
        ("/v1/embeddings", "dimension", "dimensions"),
        ("/v1/embeddings", "outputDimension", "output_dimension"),
        ("/v2/embed", "embeddingTypes", "embedding_types"),
        ("/v1/rerank", "topN", "top_n"),
    ],
)
async def test_a_slip_of_a_field_is_refused(path: str, slip: str, right: str) -> None:
    """Or the caller would believe that it was read."""
    response, asked = await ask(path, {**BARE[path], slip: 4})
    assert response.status_code == 400
    assert slip in response.text
    assert re.search(rf"\b{right}\b", response.text)
    assert asked.requests == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"dimensions": 4, "output_dimension": 5}, "output_dimension"),
        ({"truncate": True, "truncation": False}, "truncation"),
        ({"input_type": "query", "task": "retrieval.passage"}, "task"),
        ({"output_dtype": "int8", "embedding_type": "binary"}, "output_dtype"),
        ({"embedding_type": ["float", "binary"]}, "embedding_type"),
        ({"normalized": False, "output_dtype": "int8"}, "normalized"),
    ],
)
async def test_fields_that_contradict_each_other_are_refused(body: Any, field: str) -> None:
    """No dialect goes before another."""
    response, asked = await ask("/v1/embeddings", {"input": "a", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert response.json()["detail"] == response.json()["error"]["message"]
    assert asked.requests == []


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("float", "<f4"),
        ("int8", "i1"),
        ("uint8", "u1"),
        ("binary", "i1"),
        ("ubinary", "u1"),
    ],
)
async def test_base64_holds_the_numbers_of_the_type_that_was_asked(kind: str, dtype: str) -> None:
    """Voyage's client reads the bytes by output_dtype: floats would be garbage to it."""
    body = {"input": TEXTS, "output_dtype": kind}
    plain, _ = await ask("/v1/embeddings", body)
    packed, _ = await ask("/v1/embeddings", {**body, "encoding_format": "base64"})
    by_type, _ = await ask("/v2/embed", {"texts": TEXTS, "embedding_types": [kind]})
    numbers = [item["embedding"] for item in plain.json()["data"]]
    coded = [base64.b64decode(item["embedding"]) for item in packed.json()["data"]]
    assert numbers == by_type.json()["embeddings"][kind]
    assert np.allclose(np.array([np.frombuffer(each, dtype) for each in coded]), numbers)


@pytest.mark.parametrize(
    ("path", "model", "what"),
    [
        (
            "/embed_all",
            "mini",
            "mini is an embedding model, which gives one dense vector per text: /embed",
        ),
        ("/embed_all", "alias/of", "mini is an embedding model"),
        ("/embed_all", "rerank-1", "rerank-1 is a cross-encoder, which gives scores and no vectors"),
        ("/embed_all", "sparse-1", "sparse-1 is a sparse model, which gives weights of words"),
        ("/embed_sparse", "mini", "mini is an embedding model"),
        ("/embed_sparse", "label-2", "label-2 is a cross-encoder, which gives scores and no vectors"),
        ("/embed_sparse", "late-1", "late-1 is a multi-vector model, which gives one vector per token"),
        (
            "/embed",
            "sparse-1",
            "sparse-1 is a sparse model, which gives weights of words: /embed_sparse",
        ),
        (
            "/embed",
            "late-1",
            "late-1 is a multi-vector model, which gives one vector per token: /embed_all",
        ),
        ("/predict", "sparse-1", "sparse-1 is a sparse model"),
        ("/predict", "late-1", "late-1 is a multi-vector model"),
    ],
)
@pytest.mark.parametrize("place", ["body", "URL"])
async def test_a_model_of_another_task_is_refused_by_its_own(
    path: str, model: str, what: str, place: str
) -> None:
    """Before anything is said of what the body lacks."""
    url = f"{path}?model={model}" if place == "URL" else path
    body = {"model": model} if place == "body" else {"inputs": 3}
    backend = FakeBackend("mini", "rerank-1", "label-2", "sparse-1", "late-1")
    response = await post(url, body, backend, model_aliases=("alias/of=mini",))
    assert response.status_code == 422
    assert response.json()["error"].startswith(what)
    assert not backend.requests


@pytest.mark.parametrize("path", ["/embed_all", "/embed_sparse"])
async def test_the_only_model_is_refused_where_none_is_named(path: str) -> None:
    """Clients of Text Embeddings Inference name none."""
    response = await post(path, {"inputs": "a"}, FakeBackend("mini"))
    assert response.status_code == 422
    assert response.json()["error"].startswith("mini is an embedding model")
