"""The caller at the other end of a request: what it sends, and whether it is still there.

Does not know dialects, the wire format or what the work is.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from shared.errors import DeadlineExceeded, PayloadTooLarge

LARGE_BODY_BYTES = 256 * 1024
"""Decoding more than this on the event loop would hold other requests for milliseconds."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, or PayloadTooLarge as soon as it is known to be longer than `max_bytes`."""
    too_large = PayloadTooLarge(f"the body is larger than {max_bytes} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


async def while_connected(request: Request, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """`work`'s result. Cancels it, dropping what is queued, when the caller leaves or time is up.

    Call it after the body was read. Raises ClientDisconnect and DeadlineExceeded.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            raise ClientDisconnect
        raise DeadlineExceeded("the request took too long")
    finally:
        working.cancel()
        leaving.cancel()


def log_without_content(error: Exception) -> None:
    """Where an unexpected error happened, without its message: that may quote what a client sent."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    _log.error("unexpected %s\n%s", type(error).__qualname__, frames)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
