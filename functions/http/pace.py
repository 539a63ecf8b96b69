"""Minimum transfer rates: a caller that sends more slowly gets 408, one that reads so is disconnected.

Does not know HTTP, or what the bytes are for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from shared.errors import RequestTimeout

T = TypeVar("T")

MIN_BYTES_PER_S, PAUSE_S = 10_000.0, 10.0
"""Minimum rate and longest pause of a caller, sending or reading: a slow mobile network meets them."""


class MinimumRate:
    """A token bucket of waiting time.

    It starts with `grace_s` seconds. Waiting consumes them; each byte returns 1 / bytes_per_s seconds,
    up to `grace_s`. So a steady sender at that rate never times out, any pause longer than `grace_s`
    does, and earlier speed does not buy a longer pause.
    """

    def __init__(self, *, bytes_per_s: float, grace_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._grace_s = grace_s
        self.left_s = grace_s

    def received(self, size: int, waited_s: float) -> None:
        """Account for `size` bytes that took `waited_s` seconds. Raises RequestTimeout."""
        self.left_s = min(self._grace_s, self.left_s - waited_s + size / self._bytes_per_s)
        if self.left_s <= 0:
            raise self.too_slow()

    async def wait_for(self, transfer: Awaitable[None], size: int) -> None:
        """Await the transfer of `size` bytes. Raises RequestTimeout, and cancels the transfer then."""
        began_s = time.monotonic()
        await self.patiently(transfer)
        self.received(size, time.monotonic() - began_s)

    async def patiently(self, transfer: Awaitable[T]) -> T:
        """Await the transfer for as long as there is time left. Raises RequestTimeout.

        Most transfers are done at once: only those that have to wait get a timer.
        """
        begun = _Begun(transfer)
        if begun.is_done:
            return begun.result
        try:
            async with asyncio.timeout(self.left_s) as patience:
                return await begun
        except TimeoutError:
            if not patience.expired():
                raise  # the transfer's own
            raise self.too_slow() from None

    def too_slow(self) -> RequestTimeout:
        """The error for a body that came too slowly, with the rate that is required."""
        return RequestTimeout(
            f"the body arrived too slowly: send at least {self._bytes_per_s:.0f} bytes a second, "
            f"with no pause of more than {self._grace_s:.0f} s"
        )


async def enforce_rate(
    stream: AsyncIterable[bytes],
    *,
    bytes_per_s: float,
    grace_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[bytes]:
    """The blocks of `stream`. Raises RequestTimeout if they arrive more slowly than MinimumRate allows.

    Only the wait for the next block counts, not the time for processing it. clock: monotonic seconds.
    """
    rate = MinimumRate(bytes_per_s=bytes_per_s, grace_s=grace_s)
    blocks = aiter(stream)
    while True:
        began_s = clock()
        block = await rate.patiently(anext(blocks, None))
        if block is None:
            return
        rate.received(len(block), clock() - began_s)
        yield block


class _Begun(Generic[T]):
    """Something awaitable that ran up to where it has to wait; `await` goes on from there.

    result: once it is done. Raises what it raises before that.
    """

    result: T

    def __init__(self, work: Awaitable[T]) -> None:
        self._steps: Generator[Any, Any, T] = work.__await__()
        self._waits_for: Any = None
        self.is_done = False
        self._go_on(self._steps.send, None)

    def __await__(self) -> Generator[Any, Any, T]:
        while not self.is_done:
            try:
                sent = yield self._waits_for
            except BaseException as error:
                self._go_on(self._steps.throw, error)
            else:
                self._go_on(self._steps.send, sent)
        return self.result

    def _go_on(self, step: Callable[[Any], Any], value: object) -> None:
        try:
            self._waits_for = step(value)
        except StopIteration as end:
            self.result, self.is_done = end.value, True
