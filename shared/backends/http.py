"""The HTTP client of a backend app: retries, deadlines, errors translated.

Does not know models or dialects, or which backend a request should go to.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import aiohttp
import msgspec
import stamina

from shared.backends.credential import Authorize
from shared.cards import ModelState
from shared.context import deadline, trace
from shared.context.outgoing import headers_of
from shared.contracts import Request, ResultT
from shared.errors import (
    BackendFailed,
    BlitzError,
    DeadlineExceeded,
    Overloaded,
    Unauthorized,
    Unavailable,
)
from shared.wire import codec, messages

CONNECT_S = 10.0
ATTEMPTS = 3
MAX_RETRY_AFTER_S = 2.0
"""A backend that asks for a longer pause is not retried: another one may answer sooner."""
WAKE_S = 60.0
"""Time for an app that scales from zero to answer."""

# No part of a response was used, so the request may be repeated.
_BROKEN = (
    aiohttp.ClientOSError,  # refused or reset
    aiohttp.ServerDisconnectedError,  # the server closed an idle connection as it was reused
    aiohttp.ClientPayloadError,  # the response broke off
    ConnectionError,
)


class _Ready(msgspec.Struct):
    models: list[ModelState]


class HttpBackend:
    """A backend app at `url`, over keep-alive connections of the event loop that calls it.

    authorize: returns the Authorization header; None: no header.

    A call ends with the deadline of the request being served (see shared.context.deadline), and the
    backend is told how much time is left. Without a deadline it waits for as long as the backend takes.

    Calls are pure functions of the request, so they are retried up to ATTEMPTS times within the deadline
    if the connection breaks or the backend answers 503. Cancelling a call closes its connection, which
    tells the backend to stop.

    The backend's errors are raised as the same class. Raises Unavailable if nothing answers at `url`,
    DeadlineExceeded if no time is left at the start, and BackendFailed if the connection breaks or the
    response is not in the wire format.
    """

    def __init__(self, url: str, *, authorize: Authorize | None = None) -> None:
        self._url = url.rstrip("/")
        self._authority = urlsplit(self._url).netloc
        self._authorize = authorize
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    async def run(self, request: Request[ResultT]) -> ResultT:
        answer = await self._call("POST", f"/{request.operation}", messages.pack_request(request))
        kind: type[ResultT] = request.result
        return messages.unpack_result(answer, kind)

    def check(self) -> None:
        """Nothing is known here; the dispatcher limits concurrent calls."""

    async def states(self) -> list[ModelState]:
        body = await self._call("GET", "/ready")
        try:
            return msgspec.json.decode(body, type=_Ready).models
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise BackendFailed("the backend's response is not valid") from None

    async def wake(self) -> None:
        """Return once the app answers; it may be starting. Raises DeadlineExceeded after WAKE_S."""
        async with deadline.within(WAKE_S):
            async for attempt in stamina.retry_context(
                on=(aiohttp.ClientError, ConnectionError, BlitzError),
                attempts=None,
                timeout=None,
                wait_initial=0.5,
                wait_max=2.0,
                wait_jitter=0.5,
            ):
                with attempt:
                    await self._send("GET", "/health")

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    async def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        if deadline.is_over():
            raise DeadlineExceeded("the request took too long")
        with _translating():
            async for attempt in stamina.retry_context(
                on=_retry_after,
                attempts=ATTEMPTS,
                timeout=None,  # the deadline ends it
                wait_initial=0.05,
                wait_max=0.5,
                wait_jitter=0.1,
            ):
                with attempt:
                    return await self._send(method, path, body)
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {}
        if body is not None:
            headers["content-type"] = codec.CONTENT_TYPE
        if self._authorize is not None:
            headers["authorization"] = await self._authorize()
        with trace.calling(f"{method} {path}", self._authority) as span:
            headers |= headers_of(span)
            async with self._session().request(
                method, self._url + path, data=body, headers=headers, allow_redirects=False
            ) as response:
                answer = await response.read()
                span.status = response.status
        # /ready answers 503 with JSON, which is a valid response. Errors are msgpack.
        if response.status == 200 or (method == "GET" and response.content_type == _JSON):
            return answer
        raise _error_of(response.status, response.headers.get("retry-after", ""), answer)

    def _session(self) -> aiohttp.ClientSession:
        """The session of the running event loop, to which it belongs."""
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            self._sessions[loop] = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                connector=aiohttp.TCPConnector(limit=0),  # shared.routing.dispatch limits calls
                # Azure's front end sets an affinity cookie; keeping it would send all calls to one
                # instance.
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._sessions[loop]


_JSON = "application/json"


def _retry_after(error: Exception) -> bool | float:
    """Whether to retry; a number: after that many seconds, as the backend asked."""
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        wait_s = error.retry_after_s + random.uniform(0, 0.1)  # noqa: S311 - jitter
        left_s = deadline.remaining_s()
        in_time = left_s is None or wait_s < left_s
        return float(wait_s) if error.retry_after_s <= MAX_RETRY_AFTER_S and in_time else False
    return isinstance(error, (*_BROKEN, Unavailable))


@contextmanager
def _translating() -> Iterator[None]:
    """Translate aiohttp's errors into ours."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL):
        raise Unavailable("the backend does not answer", retry_after_s=1.0) from None
    except (aiohttp.ClientError, ConnectionError):
        raise BackendFailed("the connection to the backend broke") from None


def _error_of(status: int, retry_after: str, body: bytes) -> BlitzError:
    """The backend's error, or the meaning of a status from the platform in front of it."""
    error = messages.unpack_error(body)
    if isinstance(error, Unauthorized):  # the router's key, not the caller's
        return BackendFailed("the backend refused the router")
    if isinstance(error, BackendFailed) and status in (429, 503):
        wait_s = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 6 else None
        if status == 429:
            return Overloaded("the backend is overloaded: retry later", retry_after_s=wait_s)
        return Unavailable("the backend is temporarily unavailable", retry_after_s=wait_s)
    return error
