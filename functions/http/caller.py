"""Reads bodies, applies deadlines, maps errors to responses, and notices callers that disconnect.

Does not know dialects, the wire format or the work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from functions.http.admission import reserve
from functions.http.decompression import Coding, Decompressor, content_coding_of
from functions.http.pace import MIN_BYTES_PER_S, PAUSE_S, enforce_rate
from shared.context import deadline
from shared.errors import BlitzError, PayloadTooLarge, Unavailable
from shared.observability.logs import log_failure
from shared.observability.metrics import Telemetry

LARGE_BODY_BYTES = 256 * 1024
"""Decoding more than this on the event loop would delay other requests by milliseconds."""

SMALL_PACKED_BYTES = 4 * 1024
"""Less than this decompresses to a few MB at most, in as many milliseconds; usually in far less."""

_DRAIN_BYTES, _DRAIN_S = 64 << 20, 5.0
"""How much of an oversized body is read and discarded, and for how long."""

_log = logging.getLogger(__name__)

T = TypeVar("T")
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


def wrap_endpoint(
    endpoint: Endpoint,
    error_response: Callable[[BlitzError], Response],
    metrics: Telemetry,
    timeout_s: float,
) -> Endpoint:
    """`endpoint` under a deadline, with every error turned into an `error_response` without internals.

    The request's deadline is set here: `timeout_s`, or what the caller says it will wait, if that is
    less. All that is called works under it; see shared.context.deadline.
    """

    async def answer(request: Request) -> Response:
        try:
            async with deadline.within(min(timeout_s, _client_timeout_s(request))):
                return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except asyncio.CancelledError:
            # Only the server cancels, when it stops and its grace period is over. The caller is still
            # connected and may retry.
            error: BlitzError = Unavailable("the service is stopping", retry_after_s=1.0)
        except BlitzError as raised:
            error = raised
        except Exception as raised:
            log_failure(_log, "unexpected error", raised)
            error = BlitzError("internal error")
        metrics.request_failed(error.code)
        return error_response(error)

    return answer


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, decompressed. Buffers at most `max_bytes`.

    Raises PayloadTooLarge, UnsupportedMediaType for an unknown coding, Overloaded if other requests hold
    too much memory, RequestTimeout.
    """
    coding = content_coding_of(request.headers.get("content-encoding", ""))
    too_large = PayloadTooLarge(f"the body is larger than {max_bytes} bytes")
    stream = request.stream()
    stated = request.headers.get("content-length", "")
    # int() refuses thousands of digits, which servers other than uvicorn may let through.
    announced = int(stated[:18]) if stated.isdecimal() else 0
    if announced > max_bytes:
        # A client that expects 100-continue has not begun to send.
        if announced <= max_bytes + _DRAIN_BYTES and "expect" not in request.headers:
            await _drain(stream, announced)
        raise too_large
    reserve(request.scope, body_bytes=announced)
    body = bytearray()
    async for block in enforce_rate(stream, bytes_per_s=MIN_BYTES_PER_S, grace_s=PAUSE_S):
        if len(body) + len(block) > max_bytes:
            await _drain(stream, _DRAIN_BYTES)
            raise too_large
        body += block
        reserve(request.scope, body_bytes=len(body))
    return await _unpack(request, bytes(body), coding, max_bytes) if coding else bytes(body)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """`work`'s result. Cancels it, queued work included, when the caller disconnects or time is up.

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


async def in_thread_if(large: bool, work: Callable[[], T]) -> T:
    """`work()`, in a thread if it is `large`, to keep the event loop free."""
    return await asyncio.to_thread(work) if large else work()


def _client_timeout_s(request: Request) -> float:
    stated = request.headers.get(deadline.HEADER, "")
    return int(stated) / 1000 if stated.isdecimal() and len(stated) < 10 else float("inf")


async def _unpack(request: Request, packed: bytes, coding: Coding, max_bytes: int) -> bytes:
    """Decompress in threads, except the first step of a small body. Counts both forms' bytes."""
    decompressor = Decompressor(packed, coding)
    plain = bytearray()
    while block := await in_thread_if(
        bool(plain) or len(packed) > SMALL_PACKED_BYTES, decompressor.step
    ):
        if len(plain) + len(block) > max_bytes:
            raise PayloadTooLarge(f"the body is larger than {max_bytes} bytes once it is unpacked")
        plain += block
        reserve(request.scope, body_bytes=len(packed) + len(plain))
    return bytes(plain)


async def _drain(stream: AsyncIterator[bytes], most_bytes: int) -> None:
    """Read and discard: a client that is still sending when we close would see a reset."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            async for block in stream:
                most_bytes -= len(block)
                if most_bytes < 0:
                    return


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
