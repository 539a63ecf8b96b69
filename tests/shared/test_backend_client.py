"""HttpBackend against the real CPU app on a real server, and against servers that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from functions.cpu import create_app
from shared import errors
from shared.backend_client import Backend, HttpBackend
from shared.contracts import EmbedRequest, EmbedResult, ModelCard, ModelState, Timings
from shared.settings import Settings
from shared.telemetry import Telemetry

pytestmark = pytest.mark.anyio

REQUEST = EmbedRequest("m", ("abc", (1, 2)), dimensions=2, normalize=False, prompt_name="query")
CARDS = [ModelCard("m", "r", "cpu-int8", "bert", "mean", 2, 16, ("query",), 5)]
STATES = [ModelState("m", "failed", "it broke"), ModelState("n", "warm", revision="r")]


class FakeInference:
    """Answers with fixed values, keeps the requests, raises `error` when there is one."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.requests: list[EmbedRequest] = []

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        vectors = np.array([[len(item), 1] for item in request.inputs], np.float32)
        return EmbedResult(vectors, (3, 2), "m", "r", Timings(1, 2, 3))

    async def cards(self) -> list[ModelCard]:
        if self.error is not None:
            raise self.error
        return CARDS

    async def states(self) -> list[ModelState]:
        if self.error is not None:
            raise self.error
        return STATES

    async def close(self) -> None:
        pass


@asynccontextmanager
async def serving(inference: Backend) -> AsyncIterator[str]:
    """The CPU app on a free port; yields its URL."""
    app = create_app(Settings(warm_models=("m",)), inference, Telemetry(CollectorRegistry()))
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="warning", ws="none")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(handler: Handler) -> AsyncIterator[str]:
    """A TCP server that does to each connection what `handler` does."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def backend_at(url: str, **options: Any) -> AsyncIterator[HttpBackend]:
    backend = HttpBackend(url, **options)
    try:
        yield backend
    finally:
        await backend.close()


async def test_a_call_over_http_is_the_call_in_process() -> None:
    """Request and result arrive equal, vectors bit for bit; cards and states too."""
    inference = FakeInference()
    async with serving(inference) as url, backend_at(url + "/") as backend:
        result = await backend.embed(REQUEST)
        assert inference.requests == [REQUEST]
        assert result.vectors.tolist() == [[3, 1], [2, 1]]
        assert result.token_counts == (3, 2)
        assert result.timings == Timings(1, 2, 3)
        assert await backend.cards() == CARDS
        assert await backend.states() == STATES  # 503: not ready is an answer


@pytest.mark.parametrize(
    "error",
    [
        errors.InputTooLong("too long", field="input[1]"),
        errors.UnknownModel("there is no such model", field="model"),
        errors.Overloaded("later", retry_after_s=3.5),
        errors.StoreUnavailable("the store does not answer"),
    ],
)
async def test_errors_arrive_as_the_class_that_was_raised(error: errors.BlitzError) -> None:
    """Class, message, field and retry time, from every method."""
    inference = FakeInference()
    inference.error = error
    async with serving(inference) as url, backend_at(url) as backend:
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: backend.embed(REQUEST),
            backend.cards,
            backend.states,
        ]
        for call in calls:
            with pytest.raises(errors.BlitzError) as caught:
                await call()
            assert type(caught.value) is type(error)
            assert vars(caught.value) == vars(error)


async def test_nothing_listening_is_unavailable() -> None:
    """A refused connection: 503, worth a retry."""
    async with raw_server(lambda reader, writer: asyncio.sleep(0)) as url:
        pass  # the port was free a moment ago, and nothing listens there now
    async with backend_at(url) as backend:
        with pytest.raises(errors.Unavailable) as caught:
            await backend.embed(REQUEST)
    assert caught.value.retry_after_s == 1.0


async def test_a_broken_connection_is_the_backends_failure_after_one_more_try() -> None:
    """It hangs up each time: tried twice, then 502."""
    connections = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")

    async with raw_server(hang_up) as url, backend_at(url) as backend:
        with pytest.raises(errors.BackendFailed):
            await backend.embed(REQUEST)
    assert connections == 2


@pytest.mark.parametrize("status", ["200 OK", "502 Bad Gateway", "404 Not Found"])
async def test_an_answer_that_is_not_the_wires_is_the_backends_failure(status: str) -> None:
    """HTML of a proxy, whatever its status, for every method."""

    async def html(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status}\r\ncontent-length: 6\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + b"<html>")
        await writer.drain()

    async with raw_server(html) as url, backend_at(url) as backend:
        for call in (lambda: backend.embed(REQUEST), backend.cards, backend.states):
            with pytest.raises(errors.BackendFailed):
                await call()


async def test_a_backend_that_does_not_answer_in_time_is_a_deadline() -> None:
    """timeout_s is for the whole call."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_server(silent) as url, backend_at(url, timeout_s=0.05) as backend:
        with pytest.raises(errors.DeadlineExceeded):
            await backend.embed(REQUEST)
