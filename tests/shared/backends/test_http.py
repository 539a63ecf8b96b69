"""HttpBackend against the real backend app on a real server, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import stamina
from aiohttp import web

from shared import errors
from shared.backends.credential import shared_secret
from shared.backends.http import ATTEMPTS, MAX_RETRY_AFTER_S, HttpBackend
from shared.cards import ModelState
from shared.context import deadline
from shared.contracts import (
    DecodeRequest,
    DecodeResult,
    EmbedRequest,
    EmbedResult,
    PredictRequest,
    PredictResult,
    RerankRequest,
    RerankResult,
    Timings,
    TokenizeRequest,
    TokenizeResult,
)
from shared.wire import codec, messages
from tests.apps import backend_app
from tests.fakes.inference import FixedAnswers
from tests.patience import PATIENCE_S
from tests.server import free_port
from tests.sockets import serving

pytestmark = pytest.mark.anyio

REQUEST = EmbedRequest("m", ("abc", (1, 2)), dimensions=2, normalize=False, prompt_name="query")
RESULT = EmbedResult(np.array([[3, 1], [2, 1]], np.float32), (3, 2), "m", "r", Timings(1, 2, 3), "gpu")
RERANK = RerankRequest("m", "q", ("a", "b"), raw_scores=True, max_document_tokens=3)
TOKENIZE = TokenizeRequest("m", ("a", ""), special_tokens=False)
DECODE = DecodeRequest("m", ((1,), (2, 3)), skip_special_tokens=False)
PREDICT = PredictRequest("m", (("a", "b"), ("c", "d")), truncation_side="left")
STATES = [ModelState("m", "failed", "it broke"), ModelState("n", "warm", revision="r", device="gpu")]


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """Retries come at once; how many there are is the client's own doing."""
    with stamina.set_testing(True, attempts=1000, cap=True):
        yield


RESULTS = {
    "embed": RESULT,
    "rerank": RerankResult(np.array([0.5, -1]), (1, 2), "m", "r", "cosine"),
    "predict": PredictResult(np.array([[0.5], [1.0]]), (1, 2), "m", "r", ("x",)),
    "tokenize": TokenizeResult(np.ones((3, 4), np.int32), ("a", "b", "c"), (1, 2), "m", "r"),
    "decode": DecodeResult(("a", "b"), (1, 2), "m", "r"),
}


@asynccontextmanager
async def serving_backend(inference: FixedAnswers, **settings: Any) -> AsyncIterator[str]:
    """The backend app on a real server; yields its URL."""
    with serving(backend_app(inference, **settings)) as port:
        yield f"http://127.0.0.1:{port}"


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
async def http_server(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    """An HTTP server that gives each request to `answer`, and cancels it when the client leaves."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Script:
    """An `answer` that gives `answers` in order, the last one for ever, and keeps the requests."""

    def __init__(self, *answers: web.Response | errors.BlitzError) -> None:
        self.answers = list(answers)
        self.requests: list[web.BaseRequest] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, errors.BlitzError):
            return packed(answer.status, messages.pack_error(answer))
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


def packed(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type=codec.CONTENT_TYPE)


OK = packed(200, messages.pack_result(RESULT))


@asynccontextmanager
async def backend_at(url: str, **options: Any) -> AsyncIterator[HttpBackend]:
    backend = HttpBackend(url, **options)
    try:
        yield backend
    finally:
        await backend.close()


async def test_a_call_over_http_is_the_call_in_process() -> None:
    """Requests and results of each kind arrive equal, arrays bit for bit; states too."""
    inference = FixedAnswers(STATES, RESULTS)
    async with serving_backend(inference) as url, backend_at(url + "/") as backend:
        embedded = await backend.run(REQUEST)
        reranked = await backend.run(RERANK)
        predicted = await backend.run(PREDICT)
        spelled = await backend.run(TOKENIZE)
        decoded = await backend.run(DECODE)
        assert await backend.states() == STATES  # 503: not ready is an answer
    assert inference.asked == [REQUEST, RERANK, PREDICT, TOKENIZE, DECODE, "states"]
    assert embedded.vectors.tolist() == [[3, 1], [2, 1]]
    assert (embedded.token_counts, embedded.timings) == ((3, 2), Timings(1, 2, 3))
    assert embedded.device == "gpu"
    assert (reranked.scores.tolist(), reranked.method) == ([0.5, -1], "cosine")
    assert (predicted.scores.tolist(), predicted.labels) == ([[0.5], [1]], ("x",))
    assert (spelled.spans.tolist(), spelled.texts) == ([[1] * 4] * 3, ("a", "b", "c"))
    assert decoded == DecodeResult(("a", "b"), (1, 2), "m", "r")


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
    inference = FixedAnswers(STATES, RESULTS)
    inference.error = error
    async with serving_backend(inference) as url, backend_at(url) as backend:
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: backend.run(REQUEST),
            lambda: backend.run(RERANK),
            lambda: backend.run(PREDICT),
            lambda: backend.run(TOKENIZE),
            lambda: backend.run(DECODE),
            backend.states,
        ]
        for call in calls:
            with pytest.raises(errors.BlitzError) as caught:
                await call()
            assert type(caught.value) is type(error)
            assert vars(caught.value) == vars(error)


async def test_nothing_listening_is_unavailable() -> None:
    """A refused connection: 503, worth a retry."""
    async with backend_at(f"http://127.0.0.1:{free_port()}") as backend:
        with pytest.raises(errors.Unavailable) as caught:
            await backend.run(REQUEST)
    assert caught.value.retry_after_s == 1.0


async def test_a_connection_that_breaks_each_time_is_the_backends_failure() -> None:
    """It hangs up each time: tried three times, then 502."""
    connections = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")

    async with raw_server(hang_up) as url, backend_at(url) as backend:
        with pytest.raises(errors.BackendFailed):
            await backend.run(REQUEST)
    assert connections == ATTEMPTS == 3


@pytest.mark.parametrize("sent", [0, 30, 200])
async def test_a_connection_that_breaks_once_is_tried_again(sent: int) -> None:
    """Before the answer, within its head or within its body: the second answer is what counts."""
    body = messages.pack_result(RESULT)
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: {codec.CONTENT_TYPE}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    answer = head.encode() + body
    assert sent < len(answer)
    connections = 0

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer[:sent] if connections == 1 else answer)
        await writer.drain()

    async with raw_server(break_off) as url, backend_at(url) as backend:
        result = await backend.run(REQUEST)
    assert np.array_equal(result.vectors, RESULT.vectors)
    assert connections == 2


async def test_calls_share_a_connection_and_survive_its_closing() -> None:
    """Keep-alive: the second call uses the first one's; closed behind our back, a new one is opened."""
    body = messages.pack_result(RESULT)
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: {codec.CONTENT_TYPE}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    requests: list[int] = []

    async def close_after_two(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(0)
        while requests[-1] < 2:
            request = await reader.readuntil(b"\r\n\r\n")
            length = int(request.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            requests[-1] += 1
            writer.write(head.encode() + body)
            await writer.drain()
        await reader.read(1)  # the third call, or its end: closed without an answer

    async with raw_server(close_after_two) as url, backend_at(url) as backend:
        for _ in range(4):
            await backend.run(REQUEST)
    assert requests == [2, 2]


async def test_503_is_tried_again() -> None:
    """Not now, says the backend, and a moment later it answers."""
    script = Script(
        errors.Unavailable("starting"), errors.StoreUnavailable("soon", retry_after_s=0.5), OK
    )
    async with http_server(script) as url, backend_at(url) as backend:
        result = await backend.run(REQUEST)
    assert np.array_equal(result.vectors, RESULT.vectors)
    assert len(script.requests) == 3


async def test_503_for_ever_is_raised_as_it_came() -> None:
    """Three tries, then the backend's own error."""
    script = Script(errors.ModelLoadFailed("it does not load"))
    async with http_server(script) as url, backend_at(url) as backend:
        with pytest.raises(errors.ModelLoadFailed, match="it does not load"):
            await backend.run(REQUEST)
    assert len(script.requests) == ATTEMPTS


@pytest.mark.parametrize(
    "answer",
    [
        errors.InvalidInput("no"),
        errors.UnknownModel("no"),
        errors.PayloadTooLarge("no"),
        errors.Overloaded("no", retry_after_s=0.1),
        errors.Misconfigured("no"),
        errors.DeadlineExceeded("no"),
        errors.Unavailable("no", retry_after_s=MAX_RETRY_AFTER_S + 0.1),
    ],
)
async def test_what_a_retry_does_not_help_is_not_tried_again(answer: errors.BlitzError) -> None:
    """The caller's errors, an overloaded backend, 500, 504, and a 503 that asks for a long pause."""
    script = Script(answer)
    async with http_server(script) as url, backend_at(url) as backend:
        with pytest.raises(type(answer)):
            await backend.run(REQUEST)
    assert len(script.requests) == 1


async def test_no_retry_that_would_come_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend's own error now is better than a timeout later."""
    monkeypatch.setattr("shared.backends.http.MAX_RETRY_AFTER_S", 2 * PATIENCE_S)
    script = Script(errors.Unavailable("starting", retry_after_s=2 * PATIENCE_S))
    async with http_server(script) as url, backend_at(url) as backend, deadline.within(PATIENCE_S):
        with pytest.raises(errors.Unavailable, match="starting"):
            await backend.run(REQUEST)
    assert len(script.requests) == 1


@pytest.mark.parametrize("status", [200, 401, 404, 500, 502, 504])
async def test_an_answer_that_is_not_the_wires_is_the_backends_failure(status: int) -> None:
    """HTML of a proxy, whatever its status, for every method; it is not asked again."""
    script = Script(web.Response(status=status, body=b"<html>", content_type="text/html"))
    async with http_server(script) as url, backend_at(url) as backend:
        calls: list[Callable[[], Awaitable[Any]]] = [lambda: backend.run(REQUEST), backend.states]
        for call in calls:
            with pytest.raises(errors.BackendFailed):
                await call()
    assert len(script.requests) == 2


@pytest.mark.parametrize(
    ("status", "kind", "tries"), [(429, errors.Overloaded, 1), (503, errors.Unavailable, ATTEMPTS)]
)
async def test_the_platforms_own_refusals_are_understood(
    status: int, kind: type[errors.BlitzError], tries: int
) -> None:
    """Functions answers 429 and 503 itself, without our body: too much to do, and not up."""
    script = Script(web.Response(status=status, headers={"retry-after": "2"}))
    async with http_server(script) as url, backend_at(url) as backend:
        with pytest.raises(kind) as caught:
            await backend.run(REQUEST)
    assert type(caught.value) is kind
    assert caught.value.retry_after_s == 2
    assert len(script.requests) == tries


async def test_a_redirect_is_not_followed() -> None:
    """It would carry texts and the token to wherever it points."""
    script = Script(web.Response(status=307, headers={"location": "/elsewhere"}))
    async with http_server(script) as url, backend_at(url) as backend:
        with pytest.raises(errors.BackendFailed):
            await backend.run(REQUEST)
    assert [request.path for request in script.requests] == ["/embed"]


async def test_cookies_are_not_kept() -> None:
    """The platform's affinity cookie would bind all calls to one instance."""
    answer = web.Response(body=OK.body, content_type=codec.CONTENT_TYPE)
    answer.headers["set-cookie"] = "ARRAffinity=one; Path=/"
    script = Script(answer)
    async with (
        http_server(script) as url,
        backend_at(url.replace("127.0.0.1", "localhost")) as backend,  # none are kept for addresses
    ):
        await backend.run(REQUEST)
        await backend.run(REQUEST)
    assert [request.headers.get("cookie") for request in script.requests] == [None, None]


async def test_a_backend_that_does_not_answer_in_time_is_a_deadline() -> None:
    """It is for the whole call, and a call that took so long is not repeated."""
    connections = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read()

    async with raw_server(silent) as url:
        for within_s in (0.05, 0.5, 5.0, 50.0):  # until that is enough to connect
            async with backend_at(url) as backend:
                with pytest.raises(errors.DeadlineExceeded):
                    async with deadline.within(within_s):
                        await backend.run(REQUEST)
            if connections:
                break
    assert connections == 1


@pytest.mark.parametrize(("edge_s", "attempt_s"), [(200.0, 600.0), (600.0, 200.0)])
async def test_the_backend_is_told_how_long_it_has(edge_s: float, attempt_s: float) -> None:
    """Whole milliseconds: of what the request has left, or of the share that was narrowed from it."""
    script = Script(OK)
    began = time.monotonic()
    async with (
        http_server(script) as url,
        backend_at(url) as backend,
        deadline.within(edge_s),
        deadline.within(attempt_s),
    ):
        await backend.run(REQUEST)
    took_ms = 1000 * (time.monotonic() - began)
    assert 200_000 - took_ms - 1 < int(script.requests[0].headers[deadline.HEADER]) <= 200_000


async def test_nothing_is_sent_when_no_time_is_left() -> None:
    """The answer could only come too late."""
    script = Script(OK)

    async def late() -> None:
        async with deadline.within(-1):
            await backend.run(REQUEST)

    async with http_server(script) as url, backend_at(url) as backend:
        await backend.run(REQUEST)  # now there is a connection that could be used at once
        with pytest.raises(errors.DeadlineExceeded):
            await late()
    assert len(script.requests) == 1


async def test_the_backend_sees_a_caller_that_leaves() -> None:
    """Cancelling the call closes its connection, and no other: the backend can stop working."""
    arrived, left = asyncio.Event(), asyncio.Event()

    async def work(request: web.Request) -> web.StreamResponse:
        if request.path == "/embed":
            return OK
        arrived.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            left.set()
            raise
        raise AssertionError

    async with http_server(work) as url, backend_at(url) as backend:
        call = asyncio.create_task(backend.run(RERANK))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(PATIENCE_S):
            await left.wait()
        await backend.run(REQUEST)


async def test_the_backends_secret_opens_it() -> None:
    """With the secret it answers; without, the failure is the router's and not the caller's 401."""
    async with serving_backend(FixedAnswers(STATES, RESULTS), backend_secret="s3cret") as url:
        async with backend_at(url, authorize=shared_secret("s3cret")) as backend:
            assert (await backend.run(REQUEST)).token_counts == (3, 2)
            assert await backend.states() == STATES
        async with backend_at(url) as backend:
            with pytest.raises(errors.BackendFailed) as caught:
                await backend.run(REQUEST)
    assert "secret" not in str(caught.value)


async def test_waking_waits_until_the_app_answers() -> None:
    """It asks again while the app starts, whatever comes instead of an answer, and only for /health."""
    script = Script(
        web.Response(status=502),
        web.Response(status=503),
        errors.Unavailable("starting", retry_after_s=60.0),
        errors.Unavailable("starting"),
        web.Response(),
    )
    async with http_server(script) as url, backend_at(url) as backend:
        await backend.wake()
    assert [(request.method, request.path) for request in script.requests] == [("GET", "/health")] * 5


async def test_waking_what_is_not_there_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time, and with our error."""
    monkeypatch.setattr("shared.backends.http.WAKE_S", 0.05)
    async with backend_at(f"http://127.0.0.1:{free_port()}") as backend:
        with pytest.raises(errors.DeadlineExceeded):
            await backend.wake()


def test_each_event_loop_has_its_own_connections() -> None:
    """A backend made once serves loops one after the other, as test clients and workers make them."""
    backend = HttpBackend("http://127.0.0.1:1")

    async def call() -> None:
        with pytest.raises(errors.Unavailable):
            await backend.run(REQUEST)
        await backend.close()

    asyncio.run(call())
    asyncio.run(call())
