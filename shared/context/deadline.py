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

import msgspec

from shared.errors import DeadlineExceeded

HEADER = "x-blitz-timeout-ms"
"""Whole milliseconds that the sender will wait for the answer."""


class _Deadline(msgspec.Struct, frozen=True):
    """ends_at: time.monotonic() seconds. outer: the one that it narrows."""

    ends_at: float
    timer: asyncio.Timeout
    outer: _Deadline | None

    @property
    def is_over(self) -> bool:
        # The loop's timer may fire before the clock says so: uvloop counts whole milliseconds, from
        # where its current turn began.
        if self.timer.expired() or time.monotonic() >= self.ends_at:
            return True
        return self.outer is not None and self.outer.is_over


_deadline: ContextVar[_Deadline | None] = ContextVar("deadline", default=None)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Set the deadline, or narrow it: at its end the block is cancelled and raises DeadlineExceeded."""
    left = remaining_s()
    seconds = seconds if left is None else min(seconds, left)
    timer = asyncio.timeout(seconds)
    token = _deadline.set(_Deadline(time.monotonic() + seconds, timer, _deadline.get()))
    try:
        async with timer:
            yield
    except TimeoutError:
        if timer.expired():
            raise DeadlineExceeded("the request took too long") from None
        raise
    finally:
        _deadline.reset(token)


def remaining_s() -> float | None:
    """Seconds left, negative when they are over; None where no deadline was set."""
    deadline = _deadline.get()
    return None if deadline is None else deadline.ends_at - time.monotonic()


def is_over() -> bool:
    """Whether a deadline was set and no time is left."""
    deadline = _deadline.get()
    return deadline is not None and deadline.is_over
