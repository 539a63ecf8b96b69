"""The router over a fake backend: which dialect answers, in what shape, and what an error looks like."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from msgspec.structs import asdict

from functions.api.openapi import ERRORS
from functions.router import function_app
from shared import __version__, errors
from shared.cards import Device, ModelCard, ModelState
from shared.context import preference
from shared.contracts import EmbedRequest, EmbedResult
from shared.dialects.operations import OPERATIONS, PATHS, operations_at
from shared.errors import BackendFailed, InputTooLong, ModelLoadFailed, Overloaded
from shared.settings import Settings
from shared.wire import codec
from tests.apps import post, router_app, router_client
from tests.fakes.backend import FakeBackend, score_of, vector_of
from tests.patience import PATIENCE_S

MSGPACK = {"content-type": "application/msgpack"}
ACCEPT_MSGPACK = {"accept": "application/msgpack"}
SECRET = "the client's private text"
TEI_ERROR = {"error", "error_type"}
COHERE_ERROR = {"message", "detail", "error"}


OPENAI_PATHS = (
    "/v1/embeddings",
    "/embeddings",
    "/openai/v1/embeddings",
    "/openai/deployments/mini/embeddings?api-version=2024-10-21",
)


@pytest.mark.anyio
@pytest.mark.parametrize("path", OPENAI_PATHS)
async def test_openai_routes_embed(path: str) -> None:
    """Every path that OpenAI clients use answers, vectors in input order."""
    response = await post(path, {"model": "mini", "input": ["a", "b"]})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    data = response.json()["data"]
    for item, text in zip(data, ["a", "b"], strict=True):
        assert np.array_equal(np.array(item["embedding"], np.float32), vector_of(text, 8))


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/embed", "/"])
async def test_tei_routes_embed(path: str) -> None:
    """/embed, and the base URL that huggingface_hub posts to."""
    response = await post(path, {"inputs": "a"})
    assert response.status_code == 200
    assert np.array_equal(np.array(response.json(), np.float32), [vector_of("a", 8)])


DOCUMENTS = ["a", "b", "c"]
BEST_FIRST = sorted(range(3), key=lambda index: -score_of("q", DOCUMENTS[index]))


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/rerank", "/"])
async def test_tei_routes_rerank(path: str) -> None:
    """A bare list, best first, for a body with `texts`."""
    response = await post(path, {"query": "q", "texts": DOCUMENTS})
    assert response.status_code == 200
    assert response.headers["x-rerank-method"] == "cosine"
    assert [rank["index"] for rank in response.json()] == BEST_FIRST
    for rank in response.json():
        assert set(rank) == {"index", "score"}
        assert rank["score"] == pytest.approx(score_of("q", DOCUMENTS[rank["index"]]))


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize(("model", "method"), [("rerank-1", "cross-encoder"), ("mini", "cosine")])
async def test_cohere_routes_rerank(path: str, model: str, method: str) -> None:
    """Results for a body with `documents`; header and warning say what a score is."""
    body = {"model": model, "query": "q", "documents": DOCUMENTS, "top_n": 2}
    response = await post(path, body, FakeBackend("mini", "rerank-1"))
    assert response.status_code == 200
    assert response.headers["x-rerank-method"] == method
    assert [each["index"] for each in response.json()["results"]] == BEST_FIRST[:2]
    assert ("warnings" in response.json()["meta"]) == (method == "cosine")


@pytest.mark.anyio
async def test_weaviate_reranks_at_the_same_path() -> None:
    """Known by `property`; no header or field of the body names a model."""
    body = {"query": "q", "documents": DOCUMENTS, "property": ""}
    response = await post("/rerank", body, FakeBackend("mini", "rerank-1"))
    assert [each["document"] for each in response.json()["scores"]] == DOCUMENTS


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/similarity", "/"])
async def test_similarity_routes_compare(path: str) -> None:
    """A number for each sentence; the source is the first that is embedded."""
    backend = FakeBackend()
    body = {"inputs": {"source_sentence": "s", "sentences": ["a", "b"]}}
    response = await post(path, body, backend)
    source = vector_of("s", 8)
    expected = [float(source @ vector_of(text, 8)) for text in ("a", "b")]
    assert response.json() == pytest.approx(expected)
    assert backend.requests == [EmbedRequest("mini", ("s", "a", "b"))]


@pytest.mark.anyio
async def test_predict_labels() -> None:
    """The likeliest label first, for one pair here."""
    response = await post("/predict", {"inputs": ["a", "b"]}, FakeBackend("label-1"))
    likely = score_of("", ("a", "b"))
    expected = sorted([(likely, "yes"), (1 - likely, "no")], reverse=True)
    assert [each["label"] for each in response.json()] == [label for _, label in expected]
    assert [each["score"] for each in response.json()] == pytest.approx([score for score, _ in expected])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/embed", {"inputs": "a"}, "mini"),
        ("/v1/embeddings", {"input": "a"}, "mini"),
        ("/similarity", {"inputs": {"source_sentence": "s", "sentences": ["a"]}}, "mini"),
        ("/rerank", {"query": "q", "texts": ["a"]}, "rerank-1"),
        ("/v2/rerank", {"query": "q", "documents": ["a"]}, "rerank-1"),
        ("/rerank", {"query": "q", "documents": ["a"], "property": ""}, "rerank-1"),
        ("/", {"query": "q", "texts": ["a"]}, "rerank-1"),
        ("/", {"inputs": "a"}, "mini"),
        ("/predict", {"inputs": "a"}, "rerank-1"),
    ],
)
async def test_no_model_means_the_only_one_for_the_task(path: str, body: Any, model: str) -> None:
    """Clients of TEI and Weaviate cannot name one: an embedding model and a reranker serve them all."""
    backend = FakeBackend("mini", "rerank-1")
    assert (await post(path, body, backend)).status_code == 200
    named = "rerank-1" if path == "/predict" else "mini"
    assert (await post(f"{path}?model={named}", body, backend)).status_code == 200
    assert (await post(path, body, backend, default_model=named)).status_code == 200
    assert [request.model for request in backend.requests] == [model, named, named]
    backend = FakeBackend("mini", "maxi", "rerank-1", "rerank-2")
    response = await post(path, body, backend)
    assert response.status_code in (400, 422)
    right = "maxi, mini" if model == "mini" else "rerank-1, rerank-2"
    told = f"name a model, in the body as model, or as ?model=; there are: {right}"
    assert told in (response.json().get("message") or response.text)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "status", "members"),
    [
        ("/rerank", {"texts": ["a"]}, 422, TEI_ERROR),
        ("/rerank", {"query": "q", "texts": []}, 400, TEI_ERROR),
        ("/rerank", {"query": "q", "documents": []}, 400, COHERE_ERROR),
        ("/rerank", {"query": "q", "documents": [""] * 9, "property": ""}, 400, COHERE_ERROR),
        ("/rerank", {"query": "q"}, 400, COHERE_ERROR),
        ("/rerank", b"{", 400, COHERE_ERROR),
        ("/v1/rerank", {"query": "q", "texts": ["a"]}, 400, COHERE_ERROR),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "top_n": 0}, 400, COHERE_ERROR),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "model": "nope"}, 404, COHERE_ERROR),
        ("/", {"query": "q", "texts": ["a"], "model": "nope"}, 404, TEI_ERROR),
        ("/", {"inputs": {"sentences": ["a"]}}, 422, TEI_ERROR),
        ("/", {"documents": ["a"]}, 422, TEI_ERROR),
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, TEI_ERROR),
        ("/similarity", {"inputs": "a"}, 422, TEI_ERROR),
    ],
)
async def test_errors_have_the_shape_of_the_bodys_dialect(
    path: str, body: Any, status: int, members: set[str]
) -> None:
    """Where several share a path too; what cannot be told apart gets the path's last dialect."""
    response = await post(path, body, max_inputs=8)
    assert response.status_code == status
    assert set(response.json()) == members


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/rerank", {"query": "q", "texts": DOCUMENTS}, ["score"]),
        ("/rerank", {"query": "q", "documents": DOCUMENTS}, ["results", "relevance_score"]),
        ("/rerank", {"query": "q", "documents": DOCUMENTS, "property": "p"}, ["scores"]),
        ("/", {"inputs": {"source_sentence": "q", "sentences": DOCUMENTS}}, []),
        ("/predict", {"inputs": [["a"], ["b", "c"]]}, ["scores"]),
    ],
)
async def test_msgpack_finds_the_same_operation(path: str, body: Any, place: list[str]) -> None:
    """A packed body asks the backend for what the JSON one does, and gets arrays."""
    backend = FakeBackend("mini" if "inputs" in body and path == "/" else "rerank-1")
    async with router_client(backend) as client:
        await client.post(path, json=body)
        response = await client.post(
            path, content=codec.pack(body), headers={**MSGPACK, **ACCEPT_MSGPACK}
        )
    assert response.headers["content-type"] == "application/msgpack"
    assert backend.requests[0] == backend.requests[1]
    answer = codec.unpack(response.content, max_bytes=len(response.content))
    for name in place:
        answer = answer[name]
    assert isinstance(answer, np.ndarray)
    assert answer.dtype == (np.float32 if path == "/" else np.float64)


@pytest.mark.anyio
async def test_base64_and_float_hold_the_same_vectors() -> None:
    """encoding_format changes the writing, not the numbers."""
    body = {"model": "mini", "input": "a"}
    floats = (await post("/v1/embeddings", body)).json()["data"][0]["embedding"]
    coded = (await post("/v1/embeddings", {**body, "encoding_format": "base64"})).json()
    decoded = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    assert np.array_equal(decoded, np.array(floats, np.float32))


@pytest.mark.anyio
async def test_msgpack_in_and_out() -> None:
    """A msgpack body is read, and Accept gets the array, in both dialects."""
    async with router_client(FakeBackend()) as client:
        packed = codec.pack({"inputs": ["a", "b"], "dimensions": 4})
        response = await client.post("/embed", content=packed, headers={**MSGPACK, **ACCEPT_MSGPACK})
        assert response.headers["content-type"] == "application/msgpack"
        matrix = codec.unpack(response.content, max_bytes=len(response.content))
        assert np.array_equal(matrix, [vector_of("a", 4), vector_of("b", 4)])
        packed = codec.pack({"input": "a", "model": "mini"})
        response = await client.post(
            "/v1/embeddings", content=packed, headers={**MSGPACK, **ACCEPT_MSGPACK}
        )
        body = codec.unpack(response.content, max_bytes=len(response.content))
        assert np.array_equal(body["data"], [vector_of("a", 8)])


@pytest.mark.anyio
async def test_large_answers_are_as_small_ones() -> None:
    """The threshold beyond which a thread encodes changes nothing in the answer."""
    texts = [f"text {n}" for n in range(200)]
    response = await post("/embed", {"inputs": texts, "dimensions": 400})
    expected = [vector_of(text, 400) for text in texts]
    assert np.array_equal(np.array(response.json(), np.float32), expected)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "mini", "input": ""}, "input"),
        ({"model": "mini", "input": []}, "input"),
        ({"model": "mini", "input": ["a", ""]}, "input[1]"),
        ({"model": "mini", "input": ["a"] * 6}, "input"),
        ({"model": "mini", "input": ["a", "b", 1.5]}, "input[2]"),
        ({"model": "mini", "input": [["a"]]}, "input[0][0]"),
        ({"model": "mini", "input": 7}, "input"),
        ({"model": "mini", "input": [1, 2]}, "input"),
        ({"model": "mini", "input": None}, "input"),
        ({"model": "mini"}, "input"),
        ({"model": 3, "input": "a"}, "model"),
        ({"model": "mini", "input": "a", "dimensions": 0}, "dimensions"),
        ({"model": "mini", "input": "a", "dimensions": "8"}, "dimensions"),
        ({"model": "mini", "input": "a", "encoding_format": "hex"}, "encoding_format"),
        ([1], None),
        (b"{", None),
        (b"", None),
        (b'{"model": "mini", "input": "\xff"}', "input"),
        (b'{"model": "mini", "input": "a", "x": ' + b"[" * 100_000, None),
    ],
)
async def test_openai_bad_requests_name_the_field(body: Any, param: str | None) -> None:
    """400 in OpenAI's shape, param being the offending field, and nothing reaches the backend."""
    backend = FakeBackend()
    response = await post("/v1/embeddings", body, backend, max_inputs=5)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert not backend.requests


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "status", "kind", "named"),
    [
        ({"inputs": []}, 400, "Empty", "inputs"),
        ({"inputs": ["a", ""]}, 400, "Empty", "inputs[1]"),
        ({"inputs": ["a"] * 6}, 422, "Validation", "inputs"),
        ({"inputs": ["a", 1.5]}, 422, "Validation", "inputs[1]"),
        ({"inputs": "a", "truncation_direction": "Up"}, 422, "Validation", "truncation_direction"),
        ({}, 422, "Validation", "inputs"),
        (b"{", 422, "Validation", "JSON"),
    ],
)
async def test_tei_bad_requests_have_teis_shape(body: Any, status: int, kind: str, named: str) -> None:
    """TEI's statuses and shape; the message names the field."""
    response = await post("/embed", body, max_inputs=5)
    assert response.status_code == status
    assert set(response.json()) == {"error", "error_type"}
    assert response.json()["error_type"] == kind
    assert named in response.json()["error"]


@pytest.mark.anyio
@pytest.mark.parametrize("value", ["cpu", "gpu", None])
async def test_the_routing_header_is_handed_on(value: Device | None) -> None:
    """To whatever serves the request, in a task of its own; without it there is no preference."""
    heard: list[Device | None] = []

    class Listening(FakeBackend):
        async def embed(self, request: EmbedRequest) -> EmbedResult:
            heard.append(preference.preferred())
            return await super().embed(request)

    async with router_client(Listening()) as client:
        headers = {preference.HEADER: value} if value else {}
        response = await client.post("/embed", json={"inputs": "a"}, headers=headers)
    assert (response.status_code, heard) == (200, [value])


@pytest.mark.anyio
@pytest.mark.parametrize("value", ["", "tpu", "GPU", "cpu, gpu"])
async def test_a_wrong_routing_header_is_refused_by_name(value: str) -> None:
    """400 in OpenAI's shape, 422 in TEI's, with what would be right; nothing reaches the backend."""
    backend = FakeBackend()
    message = "the header x-blitz-backend must be cpu or gpu"
    async with router_client(backend) as client:
        headers = {preference.HEADER: value}
        response = await client.post("/v1/embeddings", json={"input": "a"}, headers=headers)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "x-blitz-backend")
        assert error["message"] == message
        response = await client.post("/embed", json={"inputs": "a"}, headers=headers)
        assert response.status_code == 422
        assert message in response.json()["error"]
    assert not backend.requests


@pytest.mark.anyio
async def test_bad_msgpack_is_a_bad_request() -> None:
    """Truncated msgpack, and msgpack of the wrong type, are the caller's errors."""
    async with router_client(FakeBackend()) as client:
        for content in (codec.pack({"inputs": "a"})[:-1], codec.pack({"inputs": 1.5}), b"\xc1"):
            response = await client.post("/embed", content=content, headers=MSGPACK)
            assert response.status_code == 422
            assert response.json()["error_type"] == "Validation"


@pytest.mark.anyio
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
async def test_other_content_types_are_refused(content_type: str) -> None:
    """415 says what to send."""
    async with router_client(FakeBackend()) as client:
        headers = {"content-type": content_type}
        response = await client.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers)
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, {"content-type": "Application/JSON; charset=utf-8"}])
async def test_json_is_read_with_parameters_or_no_content_type(headers: dict[str, str]) -> None:
    """An absent content type means JSON."""
    async with router_client(FakeBackend()) as client:
        response = await client.post("/embed", content=b'{"inputs": "a"}', headers=headers)
    assert response.status_code == 200


@pytest.mark.anyio
async def test_oversized_bodies_are_refused() -> None:
    """Announced or streamed without a length, the limit is the same."""

    async def stream() -> AsyncIterator[bytes]:
        yield b'{"input": "'
        for _ in range(20):
            yield b"a" * 10

    async with router_client(FakeBackend(), max_body_bytes=100) as client:
        for content in (b'{"input": "' + b"a" * 200 + b'"}', stream()):
            response = await client.post("/v1/embeddings", content=content)
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "payload_too_large"


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "key"), [("/v1/embeddings", "input"), ("/embed", "inputs")])
async def test_an_unknown_model_is_a_404_with_the_names(path: str, key: str) -> None:
    """The caller learns which models there are."""
    response = await post(path, {key: "a", "model": "nope"}, FakeBackend("one", "two"))
    assert response.status_code == 404
    assert "one, two" in response.text


@pytest.mark.anyio
async def test_a_request_without_a_model_gets_the_default_or_the_only_one() -> None:
    """With several models and no default it is an error naming `model`."""
    backend = FakeBackend("one", "two")
    response = await post("/v1/embeddings", {"input": "a"}, backend)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "model"
    assert "one, two" in response.text
    assert (await post("/embed", {"inputs": "a"}, backend, default_model="two")).status_code == 200
    assert (await post("/embed?model=one", {"inputs": "a"}, backend)).status_code == 200
    assert [request.model for request in backend.requests] == ["two", "one"]


@pytest.mark.anyio
async def test_the_settings_model_is_served_while_the_store_is_down() -> None:
    """Nobody need look up what there is: it is said which."""

    class Lost(FakeBackend):
        async def cards(self) -> list[ModelCard]:
            raise errors.StoreUnavailable("the model store did not answer")

    assert (await post("/embed", {"inputs": "a"}, Lost("one"), default_model="one")).status_code == 200
    assert (await post("/embed", {"inputs": "a"}, Lost("one"))).status_code == 503
    assert (await post("/embed", {"inputs": "a"}, FakeBackend("only"))).status_code == 200


@pytest.mark.anyio
async def test_overload_says_when_to_retry() -> None:
    """429 and 503 carry Retry-After in whole seconds and retry-after-ms."""
    backend = FakeBackend(error=Overloaded("the queue is full", retry_after_s=0.25))
    response = await post("/v1/embeddings", {"input": "a"}, backend)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.headers["retry-after-ms"] == "250"
    backend = FakeBackend(error=ModelLoadFailed("the model did not load"))
    response = await post("/embed", {"inputs": "a"}, backend)
    assert response.status_code == 503
    assert response.json() == {"error": "the model did not load", "error_type": "Unhealthy"}
    assert response.headers["retry-after"] == "1"


@pytest.mark.anyio
async def test_backend_errors_keep_their_dialects_status() -> None:
    """A broken backend is 502 to OpenAI's clients, 424 to TEI's; a too long input names itself."""
    backend = FakeBackend(error=BackendFailed("the backend did not answer"))
    assert (await post("/v1/embeddings", {"input": "a"}, backend)).status_code == 502
    assert (await post("/embed", {"inputs": "a"}, backend)).status_code == 424
    backend = FakeBackend(error=InputTooLong("300 tokens; at most 256", field="input[0]"))
    response = await post("/embed", {"inputs": "a"}, backend)
    assert response.status_code == 422
    assert response.json()["error"].startswith("inputs[0]")


@pytest.mark.anyio
async def test_slow_requests_are_answered_504() -> None:
    """The deadline is the server's, whatever the client waits."""
    backend = FakeBackend(delay_s=2 * PATIENCE_S)
    response = await post("/v1/embeddings", {"input": "a"}, backend, request_timeout_s=0.05)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"


@pytest.mark.anyio
async def test_work_for_a_caller_that_left_is_cancelled() -> None:
    """Nobody would read the vectors, so the backend stops making them."""
    cancelled = asyncio.Event()

    class Slow(FakeBackend):
        async def embed(self, request: EmbedRequest) -> EmbedResult:
            try:
                await asyncio.sleep(2 * PATIENCE_S)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            raise AssertionError

    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"inputs": "a"}', "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None: ...

    app = router_app(Slow())
    scope = {"type": "http", "method": "POST", "path": "/embed", "query_string": b"", "headers": []}
    await app(scope, receive, send)
    await asyncio.wait_for(cancelled.wait(), timeout=PATIENCE_S)


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "key"), [("/v1/embeddings", "input"), ("/embed", "inputs")])
@pytest.mark.parametrize("error", [ValueError, TimeoutError])
async def test_internal_errors_leak_nothing(
    path: str, key: str, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """A bug's message reaches neither the client nor the log; the log has its type and place."""
    backend = FakeBackend(error=error(f"/srv/secret: {SECRET}"))
    with caplog.at_level(logging.DEBUG):
        response = await post(path, {key: SECRET}, backend)
    assert response.status_code == 500
    assert "internal error" in response.text
    for text in (SECRET, "/srv/secret", error.__name__):
        assert text not in response.text
    assert SECRET not in caplog.text
    assert error.__name__ in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("device", ["cpu", "gpu"])
async def test_timing_headers_are_teis(device: Device) -> None:
    """Whole milliseconds, characters and tokens, and what served the request."""
    response = await post("/embed", {"inputs": ["abc", "de"]}, FakeBackend(device=device))
    headers = response.headers
    assert headers["x-compute-type"] == device
    assert "x-rerank-method" not in headers
    assert headers["x-compute-characters"] == "5"
    assert headers["x-compute-tokens"] == "5"
    assert headers["x-tokenization-time"] == "1"
    assert headers["x-queue-time"] == "2"
    assert headers["x-inference-time"] == "3"
    assert headers["x-compute-time"].isdecimal()
    assert headers["x-total-time"].isdecimal()
    told = "tokenization;dur=1.00, queue;dur=2.00, inference;dur=3.00, total;dur="
    assert headers["server-timing"].startswith(told)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "characters"),
    [
        ("/rerank", {"query": "q", "texts": ["abc", "de"]}, "6"),
        ("/predict", {"inputs": [["abc"], ["de", "f"]]}, "6"),
        ("/similarity", {"inputs": {"source_sentence": "abc", "sentences": ["de"]}}, "5"),
        ("/embed", {"inputs": [[101, 102], "abc"]}, "3"),
    ],
)
async def test_characters_are_those_of_every_text(path: str, body: Any, characters: str) -> None:
    """Query and both texts of a pair too; ids have none."""
    response = await post(path, body, FakeBackend("rerank-1" if path == "/predict" else "mini"))
    assert response.headers["x-compute-characters"] == characters


@pytest.mark.anyio
async def test_models_are_listed_and_looked_up() -> None:
    """GET /v1/models, one of it, /info, and 404 for another."""
    async with router_client(FakeBackend("one", "two", "rerank-1")) as client:
        models = (await client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["one", "rerank-1", "two"]
        info = (await client.get("/info?model=rerank-1")).json()
        assert set(info["model_type"]) == {"reranker"}
        assert (await client.get("/v1/models/two")).json()["id"] == "two"
        assert (await client.get("/info?model=two")).json()["model_id"] == "two"
        assert (await client.get("/info")).status_code == 422
        response = await client.get("/v1/models/three")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.anyio
async def test_health_is_liveness_and_ready_is_the_models() -> None:
    """/health answers 200 with nothing while /ready is 503 with the reason."""
    backend = FakeBackend()
    backend.model_states = [ModelState("mini", "loading")]
    async with router_client(backend) as client:
        health = await client.get("/health")
        assert (health.status_code, health.content) == (200, b"")
        assert (await client.head("/health")).status_code == 200
        response = await client.get("/ready")
        assert response.status_code == 503
        assert response.json() == {"ready": False, "models": [asdict(backend.model_states[0])]}
        backend.model_states = [ModelState("mini", "warm", revision="r1")]
        assert (await client.get("/ready")).status_code == 200
        backend.error = BackendFailed("the backend did not answer")
        response = await client.get("/ready")
        assert response.status_code == 503
        assert response.json()["reason"] == "the backend did not answer"


@pytest.mark.anyio
async def test_metrics_have_teis_names() -> None:
    """Dashboards made for TEI read these, without prometheus-client's _total."""
    async with router_client(FakeBackend()) as client:
        await client.post("/embed", json={"inputs": ["a", "b"]})
        await client.post("/embed", json={"inputs": ""})
        text = (await client.get("/metrics")).text
    lines = text.splitlines()
    for line in (
        'te_request_count{method="batch"} 1.0',
        'te_request_success{method="batch"} 1.0',
        'te_request_failure{err="empty_input"} 1.0',
        "te_embed_count 2.0",
        "te_request_duration_count 1.0",
        "te_request_tokenization_duration_count 1.0",
        "te_request_queue_duration_count 1.0",
        "te_request_inference_duration_sum 0.003",
        "te_queue_size 0.0",
        "te_batch_next_size_count 0.0",
        "te_batch_next_tokens_count 0.0",
        "# TYPE te_request_count counter",
    ):
        assert line in lines
    assert "_total" not in text
    assert "_created" not in text


@pytest.mark.anyio
async def test_unrouted_paths_and_methods_have_openais_shape() -> None:
    """404 and 405 are JSON that says where to look; 405 says what is allowed."""
    async with router_client(FakeBackend()) as client:
        response = await client.get("/nope")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "not_found"
        assert "/docs" in response.json()["error"]["message"]
        response = await client.get("/v1/embeddings")
        assert response.status_code == 405
        assert response.json()["error"]["code"] == "method_not_allowed"
        assert "POST" in response.json()["error"]["message"]
        assert response.headers["allow"] == "POST"


@pytest.mark.anyio
async def test_docs_describe_the_bodies() -> None:
    """The OpenAPI document shows each path's bodies, though msgspec reads them, and resolves."""
    async with router_client(FakeBackend()) as client:
        assert (await client.get("/docs")).status_code == 200
        document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for path in PATHS:
        bodies = dict.fromkeys(each.body.__name__ for each in operations_at(path))
        content = document["paths"][path]["post"]["requestBody"]["content"]
        parameters = document["paths"][path]["post"]["parameters"]
        assert [p["name"] for p in parameters if p["in"] == "header"] == [preference.HEADER]
        for media_type in ("application/json", "application/msgpack"):
            schema = content[media_type]["schema"]
            referred = [each["$ref"] for each in schema.get("anyOf", [schema])]
            assert referred == [f"#/components/schemas/{name}" for name in bodies]
    for operation in OPERATIONS:
        described = schemas[operation.body.__name__]["properties"]
        assert set(described) == set(operation.body.__struct_fields__)
    for reference in re.findall(r'"#/components/schemas/([^"]*)"', json.dumps(document)):
        assert reference in schemas


@pytest.mark.anyio
@pytest.mark.parametrize("query", ["", "?code=a%27b%3Cc%3E"])
async def test_the_docs_page_needs_nothing_but_this_service(query: str) -> None:
    """Its script, style and icon come from here, by relative URLs that carry the key on."""
    async with router_client(FakeBackend()) as client:
        page = (await client.get(f"/docs{query}")).text
        assert "//" not in re.sub("(?m)^ *// .*$", "", page)  # no URL with a host
        assert f"url: 'openapi.json{query}'" in page
        names = re.findall('(?:src|href)="([^"]*)"', page)
        assert len(names) == 3
        for name in names:
            assert name.endswith(query)
            response = await client.get(f"/{name}")
            assert response.status_code == 200
            assert response.content
        script = await client.get("/docs/swagger-ui-bundle.js")
        assert script.headers["content-type"].startswith("text/javascript")
        assert "SwaggerUIBundle" in script.text
        assert (await client.get("/docs/__init__.py")).status_code == 404


@pytest.mark.anyio
async def test_docs_describe_every_answer() -> None:
    """200 and each status that any dialect gives any error of the tree."""
    async with router_client(FakeBackend()) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    kinds, possible = [errors.BlitzError], set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        possible |= {each.format_error(kind("e"))[0] for each in OPERATIONS}
    assert possible == set(ERRORS)
    for path, methods in paths.items():
        for described in methods.values():
            assert {int(status) for status in described["responses"]} == {200, *possible}, path
            assert all(answer["description"] for answer in described["responses"].values())
    assert "content" not in paths["/health"]["get"]["responses"]["200"]
    assert set(paths["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}


@pytest.mark.anyio
async def test_the_version_is_the_projects() -> None:
    """It stands in one place, and both answers that tell it read it there."""
    async with router_client(FakeBackend("one")) as client:
        assert (await client.get("/info")).json()["version"] == __version__
        assert (await client.get("/openapi.json")).json()["info"]["version"] == __version__


def test_the_function_app_is_one_anonymous_function() -> None:
    """Functions serves the very ASGI app, keys being the app's own business."""
    app = function_app(Settings(cpu_backend_url="http://127.0.0.1:9"))
    [function] = app.get_functions()
    trigger = function.get_trigger()
    assert trigger is not None
    binding = trigger.get_dict_repr()
    assert binding["route"] == "/{*route}"
    assert str(binding["authLevel"]).lower().endswith("anonymous")
