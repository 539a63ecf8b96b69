"""What clients that are not installed here send, and what each reads of the answer.

voyageai 0.5.0, mistralai 3.7.0 and ollama 0.6.3 were run against this router in November 2026: their
bodies are word for word. LlamaIndex's and Haystack's have the shape that an echo server saw then.
litellm's follow the source of 1.110.2, Jina's its documentation (https://api.jina.ai/redoc): those
clients were not run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.functions.api.test_router import FakeBackend, client_of, post, vector_of

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Exchange:
    """reads: what the client makes of the answer. expected: what it must make of it."""

    client: str
    path: str
    body: str
    reads: Callable[[Any], Any]
    expected: Any


def _unit8(text: str) -> list[int]:
    """The fake backend's vectors are of no particular length, which int8 does not ask about."""
    scaled = np.rint(vector_of(text, 8) * np.float32(127)).astype(np.int32)
    return [int(each) for each in (scaled + 128) % 256 - 128]


EXCHANGES = [
    Exchange(
        "voyageai: floats",
        "/v1/embeddings",
        '{"input": ["a", "b"], "model": "mini", "input_type": "query", "truncation": true, '
        '"output_dtype": null, "output_dimension": null, "encoding_format": "base64"}',
        lambda answer: [
            np.frombuffer(base64.b64decode(each["embedding"]), "<f4").tolist() for each in answer["data"]
        ],
        [vector_of(text, 8).tolist() for text in "ab"],
    ),
    Exchange(
        "voyageai: int8",
        "/v1/embeddings",
        '{"input": ["a", "b"], "model": "mini", "input_type": null, "truncation": true, '
        '"output_dtype": "int8", "output_dimension": 8, "encoding_format": "base64"}',
        lambda answer: [
            np.frombuffer(base64.b64decode(each["embedding"]), np.int8).tolist()
            for each in answer["data"]
        ],
        [_unit8("a"), _unit8("b")],
    ),
    Exchange(
        "voyageai: rerank",
        "/v1/rerank",
        '{"query": "q", "documents": ["a", "b", "c"], "model": "rerank-1", "top_k": 2, '
        '"truncation": true}',
        lambda answer: ([each["index"] for each in answer["data"]], answer["usage"]["total_tokens"]),
        ([0, 1], 3),
    ),
    Exchange(
        "voyageai: rerank, all",
        "/v1/rerank",
        '{"query": "q", "documents": ["a", "b", "c"], "model": "rerank-1", "top_k": null, '
        '"truncation": true}',
        lambda answer: sorted(each["index"] for each in answer["data"]),
        [0, 1, 2],
    ),
    Exchange(
        "mistralai",
        "/v1/embeddings",
        '{"model":"mini","input":["a","b"]}',
        lambda answer: (bool(answer["id"]), answer["object"], answer["model"], len(answer["data"])),
        (True, "list", "mini", 2),
    ),
    Exchange(
        "mistralai: int8",
        "/v1/embeddings",
        '{"model":"mini","input":["a"],"metadata":{"a":1},"output_dimension":8,"output_dtype":"int8"}',
        lambda answer: answer["data"][0]["embedding"],
        _unit8("a"),
    ),
    Exchange(
        "Jina: embeddings",
        "/v1/embeddings",
        '{"model": "mini", "task": "retrieval.query", "dimensions": 8, "late_chunking": false, '
        '"embedding_type": "float", "input": [{"text": "a"}, "b"]}',
        lambda answer: [len(each["embedding"]) for each in answer["data"]],
        [8, 8],
    ),
    Exchange(
        "ollama: embed",
        "/api/embed",
        '{"model":"mini","input":["a","b"],"options":{"num_ctx":1},"keep_alive":"5m","dimensions":4}',
        lambda answer: (
            [len(each) for each in answer["embeddings"]],
            answer["model"],
            answer["prompt_eval_count"],
            answer["total_duration"],
        ),
        ([4, 4], "mini", 2, 6_000_000),
    ),
    Exchange(
        "ollama: embeddings",
        "/api/embeddings",
        '{"model":"mini","prompt":"a"}',
        lambda answer: answer["embedding"],
        [pytest.approx(each) for each in vector_of("a", 8).tolist()],
    ),
    Exchange(
        "llama-index: TextEmbeddingsInference",
        "/embed",
        '{"inputs": ["a", "b"], "truncate": true}',
        lambda answer: [len(each) for each in answer],
        [8, 8],
    ),
    Exchange(
        "haystack: TEI embedder",
        "/",
        '{"inputs": ["a"], "truncate": true, "normalize": false}',
        lambda answer: answer,
        [[pytest.approx(each) for each in vector_of("a", 8).tolist()]],
    ),
    Exchange(
        "haystack: TEI ranker",
        "/rerank",
        '{"query": "q", "texts": ["a", "b"], "raw_scores": false}',
        lambda answer: [each["index"] for each in answer],
        [0, 1],
    ),
    Exchange(
        "litellm: infinity",
        "/infinity/rerank",
        '{"model": "rerank-1", "query": "q", "documents": ["a", "b"], "return_documents": true, '
        '"top_n": 1}',
        lambda answer: [each["document"] for each in answer["results"]],
        ["a"],
    ),
    Exchange(
        "litellm: hosted_vllm",
        "/rerank",
        '{"model": "rerank-1", "query": "q", "documents": ["a", "b"], "return_documents": true, '
        '"top_n": 1}',
        lambda answer: [each["document"]["text"] for each in answer["results"]],
        ["a"],
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
    """`ollama list` reads each name, size, digest and time."""
    async with client_of(FakeBackend("mini", "rerank-1")) as client:
        models = (await client.get("/api/tags")).json()["models"]
    assert [model["name"] for model in models] == ["mini", "rerank-1"]
    assert {"model", "modified_at", "size", "digest", "details"} <= models[0].keys()
