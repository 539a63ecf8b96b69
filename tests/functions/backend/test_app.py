"""The backends' app, called as ASGI in process, over a fake inference."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from functions import cpu
from shared import errors
from shared.context import deadline
from shared.contracts import (
    DecodeRequest,
    DecodeResult,
    EmbedResult,
    PredictRequest,
    PredictResult,
    RerankRequest,
    RerankResult,
    TokenizeRequest,
    TokenizeResult,
)
from shared.settings import Settings
from shared.wire import codec, messages
from tests.apps import MSGPACK, WIRE_BODIES, WIRE_BODY, backend_app, backend_client
from tests.fakes.inference import FakeInference
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio


@pytest.fixture
def inference() -> FakeInference:
    return FakeInference()


@pytest.fixture
async def client(inference: FakeInference) -> AsyncIterator[httpx.AsyncClient]:
    async with backend_client(inference) as made:
        yield made


async def test_embed_answers_in_the_wire_format(client: httpx.AsyncClient) -> None:
    """msgpack in, msgpack out."""
    response = await client.post("/embed", content=WIRE_BODY, headers=MSGPACK)
    assert response.status_code == 200
    assert response.headers["content-type"] == codec.CONTENT_TYPE
    result = messages.unpack_result(response.content, EmbedResult)
    assert result.vectors.tolist() == [[3, 1], [1, 1]]
    assert result.token_counts == (3, 1)


async def test_every_kind_is_answered_in_the_wire_format(
    client: httpx.AsyncClient, inference: FakeInference
) -> None:
    """Each with its own kind of request and result."""
    response = await client.post("/rerank", content=WIRE_BODIES["/rerank"], headers=MSGPACK)
    scored = messages.unpack_result(response.content, RerankResult)
    assert (scored.scores.tolist(), scored.method) == ([3, 1], "cross-encoder")
    response = await client.post("/predict", content=WIRE_BODIES["/predict"], headers=MSGPACK)
    labelled = messages.unpack_result(response.content, PredictResult)
    assert (labelled.scores.tolist(), labelled.labels) == ([[3, 1], [2, 1]], ("no", "yes"))
    response = await client.post("/tokenize", content=WIRE_BODIES["/tokenize"], headers=MSGPACK)
    spelled = messages.unpack_result(response.content, TokenizeResult)
    assert (spelled.texts, spelled.token_counts) == (("a", "b", "c"), (3, 0))
    response = await client.post("/decode", content=WIRE_BODIES["/decode"], headers=MSGPACK)
    decoded = messages.unpack_result(response.content, DecodeResult)
    assert (decoded.texts, decoded.token_counts) == (("ab", "c"), (2, 1))
    assert inference.asked == [
        RerankRequest("m", "q", ("abc", "a")),
        PredictRequest("m", ("abc", ("a", "b"))),
        TokenizeRequest("m", ("abc", ""), special_tokens=False),
        DecodeRequest("m", ((97, 98), (99,)), skip_special_tokens=False),
    ]


@pytest.mark.parametrize("path", WIRE_BODIES)
@pytest.mark.parametrize(
    ("content", "headers", "status", "kind"),
    [
        (b"\xc1", MSGPACK, 400, errors.InvalidInput),
        (codec.pack({"model": "m", "inputs": [], "query": "q", "documents": []}), MSGPACK, 400, None),
        (codec.pack({"model": "m"}), MSGPACK, 400, errors.InvalidInput),
        (b"{}", {"content-type": "application/json"}, 415, errors.UnsupportedMediaType),
        (b"x" * 1001, MSGPACK, 413, errors.PayloadTooLarge),
    ],
)
async def test_bad_requests_are_packed_errors(
    client: httpx.AsyncClient,
    inference: FakeInference,
    path: str,
    content: bytes,
    headers: dict[str, str],
    status: int,
    kind: type[errors.BlitzError] | None,
) -> None:
    """Each with its own status, readable by the router as the same class; no model is asked."""
    response = await client.post(path, content=content, headers=headers)
    assert response.status_code == status
    assert type(messages.unpack_error(response.content)) is (kind or errors.EmptyInput)
    assert not inference.asked


async def test_a_body_without_a_length_is_cut_off_at_the_limit(client: httpx.AsyncClient) -> None:
    """Chunked bodies are counted while they are read."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 100

    response = await client.post("/embed", content=chunks(), headers=MSGPACK)
    assert response.status_code == 413


async def test_errors_of_ours_keep_class_status_and_retry_time(
    client: httpx.AsyncClient, inference: FakeInference
) -> None:
    """Overloaded: 429 with Retry-After in whole seconds."""
    inference.error = errors.Overloaded("later", retry_after_s=2.2)
    response = await client.post("/embed", content=WIRE_BODY, headers=MSGPACK)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    back = messages.unpack_error(response.content)
    assert type(back) is errors.Overloaded
    assert back.retry_after_s == 2.2


async def test_unexpected_errors_show_nothing(
    client: httpx.AsyncClient, inference: FakeInference, caplog: pytest.LogCaptureFixture
) -> None:
    """500 without the message, neither to the caller nor in the log."""
    inference.error = RuntimeError("secret text")
    response = await client.post("/embed", content=WIRE_BODY, headers=MSGPACK)
    assert response.status_code == 500
    assert b"secret" not in response.content
    assert "secret" not in caplog.text
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize(
    ("settings", "headers"),
    [({"request_timeout_s": 0.01}, {}), ({"request_timeout_s": 60}, {deadline.HEADER: "10"})],
)
async def test_a_request_that_takes_too_long_is_stopped(
    inference: FakeInference, settings: dict[str, Any], headers: dict[str, str]
) -> None:
    """504 after request_timeout_s, or what the router says it will wait; the work is cancelled."""
    inference.hang = True
    async with backend_client(inference, **settings) as client:
        response = await client.post("/embed", content=WIRE_BODY, headers={**MSGPACK, **headers})
    assert response.status_code == 504
    assert type(messages.unpack_error(response.content)) is errors.DeadlineExceeded
    await asyncio.wait_for(inference.cancelled.wait(), PATIENCE_S)


async def test_work_of_a_caller_that_left_is_dropped(inference: FakeInference) -> None:
    """http.disconnect cancels the embedding."""
    inference.hang = True
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": WIRE_BODY, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await inference.started.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/embed",
        "query_string": b"",
        "headers": [(b"content-type", codec.CONTENT_TYPE.encode())],
    }
    await asyncio.wait_for(backend_app(inference)(scope, receive, send), PATIENCE_S)
    await asyncio.wait_for(inference.cancelled.wait(), PATIENCE_S)


@pytest.mark.parametrize(
    ("state", "status"), [("warm", 200), ("cold", 503), ("loading", 503), ("failed", 503)]
)
async def test_ready_once_warm_models_are_warm(
    client: httpx.AsyncClient, inference: FakeInference, state: str, status: int
) -> None:
    """The body lists the states and why one failed."""
    inference.state = state
    response = await client.get("/ready")
    assert response.status_code == status
    body = json.loads(response.content)
    assert body["ready"] is (status == 200)
    assert body["models"][0]["state"] == state
    assert body["models"][0]["reason"] == ("it broke" if state == "failed" else None)


async def test_ready_when_the_store_is_down_is_a_packed_error(
    client: httpx.AsyncClient, inference: FakeInference
) -> None:
    """The router gets the class of error, not a broken listing."""
    inference.error = errors.StoreUnavailable("the store does not answer")
    response = await client.get("/ready")
    assert response.status_code == 503
    assert type(messages.unpack_error(response.content)) is errors.StoreUnavailable


async def test_health_answers_whatever_the_models_do(
    client: httpx.AsyncClient, inference: FakeInference
) -> None:
    """Liveness is not readiness."""
    inference.state = "failed"
    assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Bearer other", "Bearer s3cret ", "s3cret", "Bearer \xff"]
)
async def test_without_the_backend_secret_nothing_but_health_answers(
    inference: FakeInference, authorization: str
) -> None:
    """401 before the body is looked at, and with the secret an answer."""
    async with backend_client(inference, backend_secret="s3cret") as client:
        wrong = httpx.Headers({**MSGPACK, "authorization": authorization}, encoding="latin-1")
        for method, path in [("POST", "/embed"), ("POST", "/rerank"), ("POST", "/predict")]:
            response = await client.request(method, path, content=b"\xc1", headers=wrong)
            assert response.status_code == 401
            assert type(messages.unpack_error(response.content)) is errors.Unauthorized
        for path in ("/ready", "/metrics"):
            assert (await client.get(path, headers=wrong)).status_code == 401
        assert (await client.get("/health")).status_code == 200
        right = {**MSGPACK, "authorization": "Bearer s3cret"}
        assert (await client.post("/embed", content=WIRE_BODY, headers=right)).status_code == 200


async def test_metrics_count_requests(client: httpx.AsyncClient, inference: FakeInference) -> None:
    """Successes, failures by code, tokens by model, in TEI's names."""
    await client.post("/embed", content=WIRE_BODY, headers=MSGPACK)
    inference.error = errors.Overloaded("later")
    await client.post("/embed", content=WIRE_BODY, headers=MSGPACK)
    text = (await client.get("/metrics")).text
    assert 'te_request_count{method="batch"} 2.0' in text
    assert 'te_request_success{method="batch"} 1.0' in text
    assert 'te_request_failure{err="overloaded"} 1.0' in text
    assert 'blitz_embed_tokens{model="m"} 4.0' in text


def test_the_function_app_serves_any_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """One anonymous HTTP function; the app behind it is create_app's, over the CPU's inference."""
    inference = FakeInference()
    monkeypatch.setattr(cpu, "create_inference", lambda settings: inference)
    app = cpu.function_app(Settings(role="cpu"))
    functions = {function.get_function_name(): function for function in app.get_functions()}
    trigger = json.loads(functions["http_app_func"].get_function_json())["bindings"][0]
    assert trigger["authLevel"].lower() == "anonymous"
    assert trigger["route"] == "/{*route}"
