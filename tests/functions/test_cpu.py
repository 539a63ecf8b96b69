"""The CPU backend's app, called as ASGI in process, over a fake inference."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from functions import cpu
from shared import errors, wire
from shared.contracts import EmbedRequest, EmbedResult, ModelCard, ModelState
from shared.settings import Settings
from shared.telemetry import Telemetry

pytestmark = pytest.mark.anyio

MSGPACK = {"content-type": wire.CONTENT_TYPE}
BODY = wire.pack_embed_request(EmbedRequest("m", ("abc", "a")))


class FakeInference:
    """Vectors (length, 1); `error` is raised instead, `hang` never answers."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hang = False
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.state: Any = "warm"

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        self.started.set()
        if self.hang:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        if self.error is not None:
            raise self.error
        vectors = np.array([[len(item), 1] for item in request.inputs], np.float32)
        return EmbedResult(vectors, tuple(map(len, request.inputs)), "m", "r")

    async def cards(self) -> list[ModelCard]:
        return [ModelCard("m", "r", "cpu-int8", "bert", "mean", 2, 16, ("query",))]

    async def states(self) -> list[ModelState]:
        return [ModelState("m", self.state, "it broke" if self.state == "failed" else None)]

    async def close(self) -> None:
        pass


@pytest.fixture
def inference() -> FakeInference:
    return FakeInference()


def _app(inference: FakeInference, **changes: Any) -> Any:
    settings = replace(Settings(warm_models=("m",), max_body_bytes=1000), **changes)
    return cpu.create_app(settings, inference, Telemetry(CollectorRegistry()))


@pytest.fixture
async def client(inference: FakeInference) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(_app(inference))
    async with httpx.AsyncClient(transport=transport, base_url="http://cpu") as made:
        yield made


async def test_embed_answers_in_the_wire_format(client: httpx.AsyncClient) -> None:
    """msgpack in, msgpack out."""
    response = await client.post("/embed", content=BODY, headers=MSGPACK)
    assert response.status_code == 200
    assert response.headers["content-type"] == wire.CONTENT_TYPE
    result = wire.unpack_embed_result(response.content)
    assert result.vectors.tolist() == [[3, 1], [1, 1]]
    assert result.token_counts == (3, 1)


@pytest.mark.parametrize(
    ("content", "headers", "status", "kind"),
    [
        (b"\xc1", MSGPACK, 400, errors.InvalidInput),
        (wire.pack({"model": "m", "inputs": []}), MSGPACK, 400, errors.EmptyInput),
        (wire.pack({"model": "m"}), MSGPACK, 400, errors.InvalidInput),
        (b"{}", {"content-type": "application/json"}, 415, errors.UnsupportedMediaType),
        (b"x" * 1001, MSGPACK, 413, errors.PayloadTooLarge),
    ],
)
async def test_bad_requests_are_packed_errors(
    client: httpx.AsyncClient,
    content: bytes,
    headers: dict[str, str],
    status: int,
    kind: type[errors.BlitzError],
) -> None:
    """Each with its own status, and readable by the router as the same class."""
    response = await client.post("/embed", content=content, headers=headers)
    assert response.status_code == status
    assert type(wire.unpack_error(response.content)) is kind


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
    response = await client.post("/embed", content=BODY, headers=MSGPACK)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    back = wire.unpack_error(response.content)
    assert type(back) is errors.Overloaded
    assert back.retry_after_s == 2.2


async def test_unexpected_errors_show_nothing(
    client: httpx.AsyncClient, inference: FakeInference, caplog: pytest.LogCaptureFixture
) -> None:
    """500 without the message, neither to the caller nor in the log."""
    inference.error = RuntimeError("secret text")
    response = await client.post("/embed", content=BODY, headers=MSGPACK)
    assert response.status_code == 500
    assert b"secret" not in response.content
    assert "secret" not in caplog.text
    assert "RuntimeError" in caplog.text


async def test_a_request_that_takes_too_long_is_stopped(inference: FakeInference) -> None:
    """504 after request_timeout_s; the work is cancelled."""
    inference.hang = True
    transport = httpx.ASGITransport(_app(inference, request_timeout_s=0.01))
    async with httpx.AsyncClient(transport=transport, base_url="http://cpu") as client:
        response = await client.post("/embed", content=BODY, headers=MSGPACK)
    assert response.status_code == 504
    assert type(wire.unpack_error(response.content)) is errors.DeadlineExceeded
    await asyncio.wait_for(inference.cancelled.wait(), 5)


async def test_work_of_a_caller_that_left_is_dropped(inference: FakeInference) -> None:
    """http.disconnect cancels the embedding."""
    inference.hang = True
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": BODY, "more_body": False}]

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
        "headers": [(b"content-type", wire.CONTENT_TYPE.encode())],
    }
    await asyncio.wait_for(_app(inference)(scope, receive, send), 5)
    await asyncio.wait_for(inference.cancelled.wait(), 5)


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


async def test_health_answers_whatever_the_models_do(
    client: httpx.AsyncClient, inference: FakeInference
) -> None:
    """Liveness is not readiness."""
    inference.state = "failed"
    assert (await client.get("/health")).status_code == 200


async def test_models_lists_cards(client: httpx.AsyncClient) -> None:
    """JSON of the cards."""
    (card,) = json.loads((await client.get("/models")).content)
    assert (card["name"], card["dimensions"], card["prompts"]) == ("m", 2, ["query"])


async def test_metrics_count_requests(client: httpx.AsyncClient, inference: FakeInference) -> None:
    """Successes, failures by code, tokens by model, in TEI's names."""
    await client.post("/embed", content=BODY, headers=MSGPACK)
    inference.error = errors.Overloaded("later")
    await client.post("/embed", content=BODY, headers=MSGPACK)
    text = (await client.get("/metrics")).text
    assert 'te_request_count{method="batch"} 2.0' in text
    assert 'te_request_success{method="batch"} 1.0' in text
    assert 'te_request_failure{err="overloaded"} 1.0' in text
    assert 'blitz_embed_tokens{model="m"} 4.0' in text


def test_the_function_app_serves_any_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """One anonymous HTTP function; the app behind it is create_app's."""
    app = _app(FakeInference())
    monkeypatch.setattr(cpu, "create_app", lambda settings: app)
    (function,) = cpu.function_app(Settings(role="cpu")).get_functions()
    trigger = json.loads(function.get_function_json())["bindings"][0]
    assert trigger["authLevel"].lower() == "anonymous"
    assert trigger["route"] == "/{*route}"
