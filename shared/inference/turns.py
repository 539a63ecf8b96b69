"""Many callers' work through few threads, a step of each in turn.

Long work of one caller does not keep the others waiting, only `threads` steps hold memory at a time, and
the work of a caller who left ends after the current step. Does not know the work.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import msgspec

from shared.errors import Overloaded
from shared.inference.steps import Steps

R = TypeVar("R")


class _Result(msgspec.Struct, Generic[R], frozen=True):
    value: R


class Turns:
    """Safe to use from many event loops."""

    def __init__(self, threads: int, max_wait_s: float) -> None:
        """max_wait_s: how long a caller waits for one turn."""
        self._pool = ThreadPoolExecutor(threads, "turns")
        self._max_wait_s = max_wait_s

    async def finish(self, steps: Steps[R]) -> R:
        """All steps; when cancelled, none after the current one. Raises Overloaded, and what they do."""
        while True:
            turn = self._pool.submit(_next_of, steps)
            taken = asyncio.wrap_future(turn)
            try:
                await asyncio.wait((taken,), timeout=self._max_wait_s)
                if not taken.done() and turn.cancel():
                    raise Overloaded(
                        f"more text is being tokenised than this server can take: no turn came in "
                        f"{self._max_wait_s:g} s",
                        retry_after_s=max(1.0, self._max_wait_s / 2),
                    )
                result = await taken
            finally:
                taken.cancel()
            if result is not None:
                return result.value

    def close(self) -> None:
        """Waits for the steps under way; others are not begun."""
        self._pool.shutdown(cancel_futures=True)


def _next_of(steps: Steps[R]) -> _Result[R] | None:
    # StopIteration must not reach a future: asyncio refuses to keep it.
    try:
        next(steps)
    except StopIteration as end:
        return _Result(end.value)
    return None
