"""How fast callers must send and take: who sends more slowly is ended with 408, who takes so is cut off.

Does not know HTTP, nor what the bytes are for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable

from shared.errors import RequestTimeout

MIN_BYTES_PER_S, PAUSE_S = 10_000.0, 10.0
"""What callers send and take comes and goes at least so fast, without a longer pause: a slow mobile
network does."""


class MinimumRate:
    """Counts how long a sender may still be waited for.

    It begins with `grace_s` seconds. Waiting uses them up; each byte gives 1 / bytes_per_s of one back,
    but never more than `grace_s` are left. So a steady sender of that rate goes on for ever, any pause
    longer than `grace_s` ends it, and what was sent fast before buys no longer pause.
    """

    def __init__(self, *, bytes_per_s: float, grace_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._grace_s = grace_s
        self.left_s = grace_s

    def received(self, size: int, waited_s: float) -> None:
        """So many bytes came after `waited_s` seconds of waiting. Raises RequestTimeout."""
        self.left_s = min(self._grace_s, self.left_s - waited_s + size / self._bytes_per_s)
        if self.left_s <= 0:
            raise self.too_slow()

    async def wait_for(self, transfer: Awaitable[None], size: int) -> None:
        """Wait until so many bytes were transferred. Raises RequestTimeout, and then ends it."""
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(self.left_s) as patience:
                await transfer
        except TimeoutError:
            if not patience.expired():
                raise  # the transfer's own
            raise self.too_slow() from None
        self.received(size, time.monotonic() - began_s)

    def too_slow(self) -> RequestTimeout:
        return RequestTimeout(
            f"the body came too slowly: send at least {self._bytes_per_s:.0f} bytes a second, with no "
            f"pause of more than {self._grace_s:.0f} s"
        )


async def enforce_rate(
    stream: AsyncIterable[bytes],
    *,
    bytes_per_s: float,
    grace_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[bytes]:
    """The chunks of `stream`. Raises RequestTimeout when they come more slowly than MinimumRate allows.

    Only waiting for the next chunk counts: a sender is not blamed for how long its chunks are worked on.
    clock: seconds, from anywhere.
    """
    rate = MinimumRate(bytes_per_s=bytes_per_s, grace_s=grace_s)
    chunks = aiter(stream)
    while True:
        began_s = clock()
        try:
            async with asyncio.timeout(rate.left_s) as patience:
                chunk = await anext(chunks, None)
        except TimeoutError:
            if not patience.expired():
                raise  # the stream's own
            raise rate.too_slow() from None
        if chunk is None:
            return
        rate.received(len(chunk), clock() - began_s)
        yield chunk
