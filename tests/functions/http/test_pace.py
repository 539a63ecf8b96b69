"""How fast a body must come: hand-counted seconds, and streams that wait on events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from functions.http.pace import MinimumRate, enforce_rate
from shared.errors import RequestTimeout


@pytest.mark.parametrize(
    ("chunks", "lefts"),
    [
        # (bytes, seconds waited for them) at 100 bytes a second and 10 s of grace
        ([(1000, 0.0), (1000, 0.0)], [10.0, 10.0]),  # what is sent fast buys no longer pause
        ([(100, 1.0)] * 3, [10.0, 10.0, 10.0]),
        ([(50, 1.0), (50, 1.0), (150, 1.0)], [9.5, 9.0, 9.5]),
        ([(1, 9.0), (100, 0.0)], [1.01, 2.01]),
        ([(0, 4.0), (0, 4.0)], [6.0, 2.0]),
    ],
)
def test_waiting_uses_up_the_grace_and_bytes_give_it_back(
    chunks: list[tuple[int, float]], lefts: list[float]
) -> None:
    """One byte is worth a hundredth of a second."""
    rate = MinimumRate(bytes_per_s=100, grace_s=10)
    found = []
    for size, waited_s in chunks:
        rate.received(size, waited_s)
        found.append(rate.left_s)
    assert found == pytest.approx(lefts)


def test_half_the_rate_lasts_twice_the_grace() -> None:
    """A drip feed ends too, though no pause is long."""
    rate = MinimumRate(bytes_per_s=100, grace_s=10)
    for _ in range(19):
        rate.received(50, 1.0)
    with pytest.raises(RequestTimeout, match="at least 100 bytes a second"):
        rate.received(50, 1.0)


@pytest.mark.anyio
async def test_what_comes_at_once_passes_as_it_is() -> None:
    """With no time to speak of, and a clock that stands still."""

    async def stream() -> AsyncIterator[bytes]:
        for chunk in (b"a", b"", b"bc"):
            yield chunk

    chunks = enforce_rate(stream(), bytes_per_s=1, grace_s=60, clock=lambda: 0.0)
    assert [chunk async for chunk in chunks] == [b"a", b"", b"bc"]


@pytest.mark.anyio
async def test_a_sender_that_stops_is_ended_and_its_stream_closed() -> None:
    """Nothing goes on waiting for it."""
    ended = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        yield b"a" * 1000
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    chunks = enforce_rate(stream(), bytes_per_s=1, grace_s=0.05)
    assert await anext(chunks) == b"a" * 1000
    with pytest.raises(RequestTimeout):
        await anext(chunks)
    assert ended.is_set()


@pytest.mark.anyio
async def test_time_spent_on_a_chunk_is_not_the_senders() -> None:
    """A slow storage must not end an upload: only the waits between chunks count."""
    now_s = [0.0]

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"a"

    taken = 0
    async for _ in enforce_rate(stream(), bytes_per_s=1, grace_s=2, clock=lambda: now_s[0]):
        now_s[0] += 100  # of work
        taken += 1
    assert taken == 5


@pytest.mark.anyio
async def test_a_streams_own_timeout_and_a_callers_leaving_stay_what_they_are() -> None:
    """They are not the sender's slowness."""

    async def stream(error: BaseException) -> AsyncIterator[bytes]:
        yield b"a"
        raise error

    for error in (TimeoutError("its own"), ValueError("wrong"), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            async for _ in enforce_rate(stream(error), bytes_per_s=1, grace_s=60):
                pass
