"""How much time the request being served has left, wherever in its call tree one asks.

There is one deadline. It is set where a request arrives, narrowed where there is a reason to, and sent
along in a header. It goes with the task, as a context variable, so that code between the HTTP edge and a
backend need not hand it through. Does not know HTTP, except that header.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from shared.errors import DeadlineExceeded

HEADER = "x-blitz-timeout-ms"
"""Whole milliseconds that the sender will wait for the answer."""

_ends_at: ContextVar[float | None] = ContextVar("deadline", default=None)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Set the deadline, or narrow it: at its end the block is cancelled and raises DeadlineExceeded."""
    left = remaining_s()
    seconds = seconds if left is None else min(seconds, left)
    token = _ends_at.set(time.monotonic() + seconds)
    try:
        async with asyncio.timeout(seconds) as timeout:
            yield
    except TimeoutError:
        if timeout.expired():
            raise DeadlineExceeded("the request took too long") from None
        raise
    finally:
        _ends_at.reset(token)


def remaining_s() -> float | None:
    """Seconds left, negative when they are over; None where no deadline was set."""
    ends_at = _ends_at.get()
    return None if ends_at is None else ends_at - time.monotonic()


def is_over() -> bool:
    """Whether a deadline was set and no time is left."""
    left_s = remaining_s()
    return left_s is not None and left_s <= 0
