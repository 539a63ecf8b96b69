"""What clients that are not installed here send, and what each reads of the answer.

chromadb 1.5.9 and semantic-kernel 1.45.0 were run against this service in November 2026: their bodies
are word for word, but for names and texts. Jina's follow its documentation (https://api.jina.ai/redoc).
The clients that are installed are run by test_client_programs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.apps import post, router_client
from tests.fakes.backend import FakeBackend, vector_of

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Exchange:
    """reads: what the client makes of the answer. expected: what it must make of it."""

    client: str
    path: str
    body: str
    reads: Callable[[Any], Any]
    expected: Any


EXCHANGES = [
    Exchange(
        "Jina: embeddings",
        "/v1/embeddings",
        '{"model": "mini", "task": "retrieval.query", "dimensions": 8, "late_chunking": false, '
        '"embedding_type": "float", "input": [{"text": "a"}, "b"]}',
        lambda answer: [len(each["embedding"]) for each in answer["data"]],
        [8, 8],
    ),
    Exchange(
        "chromadb and semantic-kernel: OpenAI",
        "/v1/embeddings",
        '{"model":"mini","input":["a","b"],"encoding_format":"base64"}',
        lambda answer: [
            np.frombuffer(base64.b64decode(each["embedding"]), "<f4").tolist() for each in answer["data"]
        ],
        [vector_of(text, 8).tolist() for text in "ab"],
    ),
    Exchange(
        "chromadb: HuggingFaceEmbeddingServer",
        "/embed",
        '{"inputs":["a","b"]}',
        lambda answer: [len(each) for each in answer],
        [8, 8],
    ),
    Exchange(
        "chromadb: OllamaEmbeddingFunction",
        "/api/embed",
        '{"model":"mini","input":["a","b"]}',
        lambda answer: (
            [len(each) for each in answer["embeddings"]],
            answer["prompt_eval_count"],
            answer["total_duration"],
        ),
        ([8, 8], 2, 6_000_000),
    ),
]


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.client)
async def test_a_recorded_request_is_answered_as_its_client_reads_it(exchange: Exchange) -> None:
    """And nothing of it was dropped; that this model has no prompts is told."""
    response = await post(exchange.path, exchange.body.encode(), FakeBackend("mini", "rerank-1"))
    assert response.status_code == 200
    assert "not read" not in response.headers.get("x-warning", "")
    assert exchange.reads(response.json()) == exchange.expected


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/v1/embeddings", "detail"),  # voyageai, Jina
        ("/v1/rerank", "detail"),
        ("/api/embed", "error"),  # ollama
        ("/api/embeddings", "error"),
    ],
)
async def test_an_error_is_a_text_where_its_client_looks(path: str, where: str) -> None:
    """The SDKs show the value as it is."""
    texts = {"input": "a", "prompt": "a", "query": "a", "documents": ["a"]}
    body = {"/v1/embeddings": ["input"], "/api/embed": ["input"], "/api/embeddings": ["prompt"]}
    names = body.get(path, ["query", "documents"])
    sent = {"model": "nope", **{name: texts[name] for name in names}}
    response = await post(path, json.dumps(sent).encode(), FakeBackend("mini"))
    assert response.status_code == 404
    assert "there is no model" in response.json()[where]


async def test_ollama_lists_the_models() -> None:
    """`ollama list` reads each name, size, digest and time; a name has a tag there."""
    async with router_client(FakeBackend("mini", "rerank-1"), model_aliases=("x/y:1=mini",)) as client:
        models = (await client.get("/api/tags")).json()["models"]
    assert [model["name"] for model in models] == ["mini:latest", "rerank-1:latest", "x/y:1"]
    assert [model["model"] for model in models] == [model["name"] for model in models]
    assert {"model", "modified_at", "size", "digest", "details"} <= models[0].keys()


@pytest.mark.parametrize(
    ("body", "context", "length", "capabilities"),
    [
        ('{"model":"mini"}', 256, 8, ["embedding"]),
        ('{"model":"mini:latest"}', 256, 8, ["embedding"]),
        ('{"name":"mini"}', 256, 8, ["embedding"]),
        ('{"model":"","system":"","template":"","verbose":false,"name":"mini"}', 256, 8, ["embedding"]),
        ('{"model":"rerank-1"}', 256, None, []),
    ],
)
async def test_ollama_shows_a_model(
    body: str, context: int, length: int | None, capabilities: list[str]
) -> None:
    """ollama-python 0.6.3 needs model_info; others read lengths there, and what a model can do."""
    response = await post("/api/show", body.encode(), FakeBackend("mini", "rerank-1"))
    assert response.status_code == 200
    shown = response.json()
    assert shown["model_info"]["bert.context_length"] == context
    assert shown["model_info"].get("bert.embedding_length") == length
    assert shown["model_info"]["general.architecture"] == shown["details"]["family"] == "bert"
    assert shown["capabilities"] == capabilities
    assert shown["modified_at"].startswith("1970-01-01T")


async def test_ollama_tells_a_version_and_no_model_that_there_is_not() -> None:
    """Some clients refuse to talk to an old one."""
    async with router_client(FakeBackend("mini")) as client:
        version = (await client.get("/api/version")).json()["version"]
        assert (await client.head("/api/version")).status_code == 200
        missing = await client.post("/api/show", json={"model": "nope:latest"})
        broken = await client.post("/api/show", json={"model": 3})
    assert [int(part) for part in version.split(".")] >= [0, 6, 4]
    assert missing.status_code == 404
    assert missing.json() == {"error": "there is no model 'nope:latest'; there are: mini"}
    assert broken.status_code == 400
    assert "model must be a text" in broken.json()["error"]


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        ("mini", "mini"),
        ("mini:latest", "mini"),
        ("text:latest", "mini"),
        ("text", "mini"),
        ("tagged", "mini"),
        ("tagged:latest", "mini"),
        ("BAAI/bge:latest", "mini"),
        ("mini:v2", None),
        ("mini:latest:latest", None),
        ("latest", None),
    ],
)
async def test_a_name_without_a_tag_is_the_latest(asked: str, model: str | None) -> None:
    """In all of Ollama's paths, for models and aliases; the answer has the name that was asked for."""
    aliases = ("text=mini", "tagged:latest=mini", "BAAI/bge=mini")
    backend = FakeBackend("mini", "other")
    embed = await post("/api/embed", {"model": asked, "input": "a"}, backend, model_aliases=aliases)
    old = await post("/api/embeddings", {"model": asked, "prompt": "a"}, backend, model_aliases=aliases)
    show = await post("/api/show", {"model": asked}, backend, model_aliases=aliases)
    status = 200 if model else 404
    assert [each.status_code for each in (embed, old, show)] == [status] * 3
    assert model is None or [request.model for request in backend.requests] == [model] * 2
    assert model is None or embed.json()["model"] == asked
    assert model is not None or f"no model '{asked}'" in embed.json()["error"]


async def test_a_tag_is_ollama_s_alone() -> None:
    """Elsewhere a colon is a part of an alias's name, or no name at all."""
    for path in ("/v1/embeddings", "/embed"):
        body = {"model": "mini:latest", "input": "a", "inputs": "a"}
        body.pop("inputs" if path == "/v1/embeddings" else "input")
        assert (await post(path, body, FakeBackend("mini"))).status_code == 404
