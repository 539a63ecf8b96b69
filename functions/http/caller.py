"""The caller at the other end of a request: what it sends, how long it waits, whether it is still there.

Does not know dialects, the wire format or what the work is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from functions.http.admission import hold
from functions.http.pace import MIN_BYTES_PER_S, PAUSE_S, at_least
from functions.http.unpacked import Coding, Unpacking, coding_of
from shared.context import deadline
from shared.errors import BlitzError, PayloadTooLarge, Unavailable
from shared.observability.logs import log_failure
from shared.observability.metrics import Telemetry

LARGE_BODY_BYTES = 256 * 1024
"""Decoding more than this on the event loop would hold other requests for milliseconds."""

SMALL_PACKED_BYTES = 4 * 1024
"""Less than this unpacks to a few MB at most, in as many milliseconds; typical bodies in far less."""

_DRAIN_BYTES, _DRAIN_S = 64 << 20, 5.0
"""So much of a body that is too large is read and dropped, and so long."""

_log = logging.getLogger(__name__)

T = TypeVar("T")
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


def answering(
    endpoint: Endpoint,
    error_response: Callable[[BlitzError], Response],
    metrics: Telemetry,
    timeout_s: float,
) -> Endpoint:
    """`endpoint` within the deadline, every error as `error_response` makes it, nothing internal in it.

    The deadline is `timeout_s`, or what the caller says it will wait, if that is less.
    """

    async def answer(request: Request) -> Response:
        try:
            async with deadline.within(min(timeout_s, _patience_s(request))):
                return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except asyncio.CancelledError:
            # Only the server cancels, when it stops and this took longer than it waits. The caller is
            # still there, and may come again.
            error: BlitzError = Unavailable("the service is stopping", retry_after_s=1.0)
        except BlitzError as raised:
            error = raised
        except Exception as raised:
            log_failure(_log, logging.ERROR, "a request failed", raised)
            error = BlitzError("internal error")
        metrics.request_failed(error.code)
        return error_response(error)

    return answer


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, unpacked. Raises PayloadTooLarge: of more than `max_bytes` no more is held.

    And UnsupportedMediaType for a coding that is not read; Overloaded, if other requests hold too much
    already; RequestTimeout.
    """
    coding = coding_of(request.headers.get("content-encoding", ""))
    too_large = PayloadTooLarge(f"the body is larger than {max_bytes} bytes")
    stream = request.stream()
    stated = request.headers.get("content-length", "")
    # int() refuses thousands of digits, which some other server than uvicorn may let through.
    announced = int(stated[:18]) if stated.isdecimal() else 0
    if announced > max_bytes:
        # Who expects 100-continue has not begun to send.
        if announced <= max_bytes + _DRAIN_BYTES and "expect" not in request.headers:
            await _drain(stream, announced)
        raise too_large
    hold(request.scope, body_bytes=announced)
    body = bytearray()
    async for chunk in at_least(stream, bytes_per_s=MIN_BYTES_PER_S, grace_s=PAUSE_S):
        if len(body) + len(chunk) > max_bytes:
            await _drain(stream, _DRAIN_BYTES)
            raise too_large
        body += chunk
        hold(request.scope, body_bytes=len(body))
    return await _unpack(request, bytes(body), coding, max_bytes) if coding else bytes(body)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """`work`'s result. Cancels it, dropping what is queued, when the caller leaves or time is up.

    Call it after the body was read. Raises ClientDisconnect.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()


async def off_loop_if(large: bool, work: Callable[[], T]) -> T:
    """`work()`, in a thread if it is `large`, so that the event loop goes on."""
    return await asyncio.to_thread(work) if large else work()


def _patience_s(request: Request) -> float:
    stated = request.headers.get(deadline.HEADER, "")
    return int(stated) / 1000 if stated.isdecimal() and len(stated) < 10 else float("inf")


async def _unpack(request: Request, packed: bytes, coding: Coding, max_bytes: int) -> bytes:
    """Off the event loop, but for the first step of a small one. Packed bytes and plain ones count."""
    unpacking = Unpacking(packed, coding)
    plain = bytearray()
    while part := await off_loop_if(bool(plain) or len(packed) > SMALL_PACKED_BYTES, unpacking.step):
        if len(plain) + len(part) > max_bytes:
            raise PayloadTooLarge(f"the body is larger than {max_bytes} bytes once it is unpacked")
        plain += part
        hold(request.scope, body_bytes=len(packed) + len(plain))
    return bytes(plain)


async def _drain(stream: AsyncIterator[bytes], most_bytes: int) -> None:
    """Read on and hold nothing: who still sends when the connection closes sees a reset, no answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            async for chunk in stream:
                most_bytes -= len(chunk)
                if most_bytes < 0:
                    return


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
