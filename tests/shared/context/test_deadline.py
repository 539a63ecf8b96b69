"""shared.context.deadline: one deadline for a whole call tree, the nearest one wins."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import SimpleNamespace

import pytest

from shared.context import deadline
from shared.errors import DeadlineExceeded

pytestmark = pytest.mark.anyio


async def test_without_a_deadline_none_is_left() -> None:
    """None is not zero: there is no hurry at all."""
    assert deadline.remaining_s() is None
    assert not deadline.is_over()


async def test_the_time_left_is_seen_in_tasks_started_inside() -> None:
    """It goes with the context, so a task of a task sees it, and it is gone afterwards."""

    async def look() -> float | None:
        return deadline.remaining_s()

    began = time.monotonic()
    async with deadline.within(60):
        left_s = await asyncio.create_task(look())
    took_s = time.monotonic() - began
    assert left_s is not None
    assert 60 - took_s <= left_s <= 60
    assert deadline.remaining_s() is None


async def test_an_inner_deadline_cannot_be_later_than_the_outer() -> None:
    """A day inside an hour is an hour, a minute is a minute, and after them the hour goes on."""
    async with deadline.within(3600):
        async with deadline.within(86_400):
            inner_s = deadline.remaining_s()
        async with deadline.within(60):
            shorter_s = deadline.remaining_s()
        restored_s = deadline.remaining_s()
    assert inner_s is not None
    assert inner_s <= 3600
    assert shorter_s is not None
    assert shorter_s <= 60
    assert restored_s is not None
    assert restored_s > 60


async def test_the_block_is_cancelled_when_time_is_up() -> None:
    """What it waits for is cancelled, and the error is ours."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with pytest.raises(DeadlineExceeded):
        async with deadline.within(0.01):
            await ended
    assert ended.cancelled()


@pytest.mark.parametrize(("outer_s", "inner_s"), [(0.01, 60.0), (60.0, 0.01), (0.01, 0.01)])
async def test_nested_deadlines_end_in_one_error(outer_s: float, inner_s: float) -> None:
    """Whichever ends first, or both at once: DeadlineExceeded, never a bare cancellation."""
    with pytest.raises(DeadlineExceeded):
        async with deadline.within(outer_s), deadline.within(inner_s):
            await asyncio.Event().wait()


async def test_a_deadline_that_passed_ends_the_block_at_its_first_wait() -> None:
    """Less than nothing is left: no waiting, and the time left says so."""
    seen: list[float | None] = []

    async def look_and_wait() -> None:
        async with deadline.within(-1):
            seen.append(deadline.remaining_s())
            assert deadline.is_over()
            await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded):
        await look_and_wait()
    assert [left_s for left_s in seen if left_s is not None and left_s < 0]


async def test_a_timeout_of_something_else_passes_through() -> None:
    """A TimeoutError raised inside is not taken for the deadline."""
    with pytest.raises(TimeoutError, match="a socket"):
        async with deadline.within(60):
            raise TimeoutError("a socket")


async def test_a_caller_that_is_cancelled_is_cancelled() -> None:
    """Cancellation from outside is not turned into a deadline."""
    entered = asyncio.Event()

    async def wait() -> None:
        async with deadline.within(60):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("narrowed", [False, True])
async def test_a_timer_that_is_ahead_of_the_clock_ends_the_time(
    narrowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cancelled by a deadline sees that it is over: an event loop counts more coarsely."""
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: 0.0))
    seen = []

    async def wait() -> None:
        try:
            async with deadline.within(60) if narrowed else contextlib.nullcontext():
                await asyncio.get_running_loop().create_future()
        finally:
            seen.append(deadline.is_over())

    with pytest.raises(DeadlineExceeded):
        async with deadline.within(0.01):
            await wait()
    assert seen == [True]
