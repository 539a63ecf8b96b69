"""The caller at the other end of a request: what it sends, how long it waits, whether it is still there.

Does not know dialects, the wire format or what the work is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from shared import deadline
from shared.errors import BlitzError, PayloadTooLarge
from shared.logs import FAILURE, Failure
from shared.telemetry import Telemetry

LARGE_BODY_BYTES = 256 * 1024
"""Decoding more than this on the event loop would hold other requests for milliseconds."""

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
        except BlitzError as raised:
            error = raised
        except Exception as raised:
            log_without_content(raised)
            error = BlitzError("internal error")
        metrics.request_failed(error.code)
        return error_response(error)

    return answer


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, or PayloadTooLarge as soon as it is known to be longer than `max_bytes`."""
    too_large = PayloadTooLarge(f"the body is larger than {max_bytes} bytes")
    announced = request.headers.get("content-length", "")
    # int() refuses thousands of digits, which some other server than uvicorn may let through.
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > max_bytes):
        raise too_large
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


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


def log_without_content(error: Exception) -> None:
    """Where an unexpected error happened, without its message: that may quote what a client sent."""
    failure = Failure.of(error)
    _log.error("unexpected %s%s", failure.error, failure.innermost, extra={FAILURE: failure})


def _patience_s(request: Request) -> float:
    stated = request.headers.get(deadline.HEADER, "")
    return int(stated) / 1000 if stated.isdecimal() and len(stated) < 10 else float("inf")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
