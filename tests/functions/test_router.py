from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from functions.router import VERSION, create_app, function_app, is_ready
from shared import wire
from shared.contracts import EmbedRequest, EmbedResult, ModelCard, ModelState, Timings
from shared.errors import (
    BackendFailed,
    InputTooLong,
    ModelLoadFailed,
    Overloaded,
    UnknownModel,
)
from shared.settings import Settings
from shared.telemetry import Telemetry

MSGPACK = {"content-type": "application/msgpack"}
ACCEPT_MSGPACK = {"accept": "application/msgpack"}
SECRET = "the client's private text"


class FakeBackend:
    """Vectors that depend on nothing but the text; raises `error` instead if there is one."""

    def __init__(self, *names: str, error: Exception | None = None, delay_s: float = 0.0) -> None:
        self.model_names = names or ("mini",)
        self.error = error
        self.delay_s = delay_s
        self.requests: list[EmbedRequest] = []
        self.model_states = [ModelState(name, "warm") for name in self.model_names]

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        self.requests.append(request)
        await asyncio.sleep(self.delay_s)
        if self.error:
            raise self.error
        if request.model not in self.model_names:
            names = ", ".join(self.model_names)
            raise UnknownModel(f"no model {request.model}; there are: {names}", field="model")
        vectors = np.stack([vector_of(item, request.dimensions or 8) for item in request.inputs])
        counts = tuple(len(item) for item in request.inputs)
        timings = Timings(tokenization_s=0.001, queue_s=0.002, inference_s=0.003)
        return EmbedResult(vectors, counts, request.model, "r1", timings)

    async def cards(self) -> list[ModelCard]:
        return [ModelCard(n, "r1", "cpu-int8", "bert", "mean", 8, 256) for n in self.model_names]

    async def states(self) -> list[ModelState]:
        if self.error:
            raise self.error
        return self.model_states

    async def close(self) -> None: ...


def vector_of(item: Any, dimensions: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    seed = hashlib.sha256(repr(item).encode()).digest()[:4]
    generator = np.random.default_rng(int.from_bytes(seed, "big"))
    return generator.standard_normal(dimensions, np.float32)


def client_of(backend: FakeBackend, **settings: Any) -> httpx.AsyncClient:
    app = create_app(Settings(**settings), backend, Telemetry(CollectorRegistry()))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def post(
    path: str, body: Any, backend: FakeBackend | None = None, **settings: Any
) -> httpx.Response:
    """One request to a fresh app; `body` bytes go as they are."""
    async with client_of(backend or FakeBackend(), **settings) as client:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await client.post(path, content=content, headers={"content-type": "application/json"})


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
    async with client_of(FakeBackend()) as client:
        packed = wire.pack({"inputs": ["a", "b"], "dimensions": 4})
        response = await client.post("/embed", content=packed, headers={**MSGPACK, **ACCEPT_MSGPACK})
        assert response.headers["content-type"] == "application/msgpack"
        matrix = wire.unpack(response.content, max_bytes=len(response.content))
        assert np.array_equal(matrix, [vector_of("a", 4), vector_of("b", 4)])
        packed = wire.pack({"input": "a", "model": "mini"})
        response = await client.post(
            "/v1/embeddings", content=packed, headers={**MSGPACK, **ACCEPT_MSGPACK}
        )
        body = wire.unpack(response.content, max_bytes=len(response.content))
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
        (b'{"model": "mini", "input": "\xff"}', None),
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
async def test_bad_msgpack_is_a_bad_request() -> None:
    """Truncated msgpack, and msgpack of the wrong type, are the caller's errors."""
    async with client_of(FakeBackend()) as client:
        for content in (wire.pack({"inputs": "a"})[:-1], wire.pack({"inputs": 1.5}), b"\xc1"):
            response = await client.post("/embed", content=content, headers=MSGPACK)
            assert response.status_code == 422
            assert response.json()["error_type"] == "Validation"


@pytest.mark.anyio
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
async def test_other_content_types_are_refused(content_type: str) -> None:
    """415 says what to send."""
    async with client_of(FakeBackend()) as client:
        headers = {"content-type": content_type}
        response = await client.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers)
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, {"content-type": "Application/JSON; charset=utf-8"}])
async def test_json_is_read_with_parameters_or_no_content_type(headers: dict[str, str]) -> None:
    """An absent content type means JSON."""
    async with client_of(FakeBackend()) as client:
        response = await client.post("/embed", content=b'{"inputs": "a"}', headers=headers)
    assert response.status_code == 200


@pytest.mark.anyio
async def test_oversized_bodies_are_refused() -> None:
    """Announced or streamed without a length, the limit is the same."""

    async def stream() -> AsyncIterator[bytes]:
        yield b'{"input": "'
        for _ in range(20):
            yield b"a" * 10

    async with client_of(FakeBackend(), max_body_bytes=100) as client:
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
    backend = FakeBackend(delay_s=30)
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
                await asyncio.sleep(30)
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

    app = create_app(Settings(), Slow(), Telemetry(CollectorRegistry()))
    scope = {"type": "http", "method": "POST", "path": "/embed", "query_string": b"", "headers": []}
    await app(scope, receive, send)
    await asyncio.wait_for(cancelled.wait(), timeout=5)


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
async def test_timing_headers_are_teis() -> None:
    """Whole milliseconds, characters and tokens."""
    response = await post("/embed", {"inputs": ["abc", "de"]})
    headers = response.headers
    assert headers["x-compute-type"] == "cpu"
    assert headers["x-compute-characters"] == "5"
    assert headers["x-compute-tokens"] == "5"
    assert headers["x-tokenization-time"] == "1"
    assert headers["x-queue-time"] == "2"
    assert headers["x-inference-time"] == "3"
    assert headers["x-compute-time"].isdecimal()
    assert headers["x-total-time"].isdecimal()


@pytest.mark.anyio
async def test_models_are_listed_and_looked_up() -> None:
    """GET /v1/models, one of it, /info, and 404 for another."""
    async with client_of(FakeBackend("one", "two")) as client:
        models = (await client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["one", "two"]
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
    async with client_of(backend) as client:
        health = await client.get("/health")
        assert (health.status_code, health.content) == (200, b"")
        response = await client.get("/ready")
        assert response.status_code == 503
        model = {"name": "mini", "state": "loading", "reason": None, "revision": None}
        assert response.json() == {"ready": False, "models": [model]}
        backend.model_states = [ModelState("mini", "warm", revision="r1")]
        assert (await client.get("/ready")).status_code == 200
        backend.error = BackendFailed("the backend did not answer")
        response = await client.get("/ready")
        assert response.status_code == 503
        assert response.json()["reason"] == "the backend did not answer"


def test_ready_waits_for_the_named_models() -> None:
    """Named models must all be warm; with none named one warm, or nothing ever asked for, is enough."""
    warm, cold, failed = (
        ModelState("a", "warm"),
        ModelState("b", "cold"),
        ModelState("c", "failed", "no"),
    )
    assert is_ready([warm, cold], ("a",))
    assert not is_ready([warm, cold], ("a", "b"))
    assert not is_ready([], ("a",))
    assert is_ready([warm, failed], ())
    assert is_ready([cold], ())
    assert not is_ready([cold, failed], ())


@pytest.mark.anyio
async def test_metrics_have_teis_names() -> None:
    """Dashboards made for TEI read these, without prometheus-client's _total."""
    async with client_of(FakeBackend()) as client:
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
    """404 and 405 are JSON; 405 says what is allowed."""
    async with client_of(FakeBackend()) as client:
        response = await client.get("/nope")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "not_found"
        response = await client.get("/v1/embeddings")
        assert response.status_code == 405
        assert response.json()["error"]["code"] == "method_not_allowed"
        assert response.headers["allow"] == "POST"


@pytest.mark.anyio
async def test_docs_describe_the_bodies() -> None:
    """The OpenAPI page shows each dialect's fields, though msgspec reads the bodies."""
    async with client_of(FakeBackend()) as client:
        assert (await client.get("/docs")).status_code == 200
        paths = (await client.get("/openapi.json")).json()["paths"]
    for path, field in (("/v1/embeddings", "encoding_format"), ("/embed", "truncation_direction")):
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert field in body["properties"]


def test_the_version_is_the_packages() -> None:
    """/info and the package agree."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_the_function_app_is_one_anonymous_function() -> None:
    """Functions serves the very ASGI app, keys being the app's own business."""
    app = function_app(Settings(cpu_backend_url="http://127.0.0.1:9"))
    [function] = app.get_functions()
    trigger = function.get_trigger()
    assert trigger is not None
    binding = trigger.get_dict_repr()
    assert binding["route"] == "/{*route}"
    assert str(binding["authLevel"]).lower().endswith("anonymous")
