from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from shared.errors import InputTooLong, Overloaded
from shared.inference.steps import Steps
from shared.inference.turns import Turns

pytestmark = pytest.mark.anyio


@pytest.fixture
def turns() -> Iterator[Turns]:
    made = Turns(threads=1, max_wait_s=10)
    yield made
    made.close()


def counted(name: str, steps: int, log: list[str]) -> Steps[str]:
    for _ in range(steps):
        log.append(name)
        yield
    return name


def held(
    name: str, steps: int, log: list[str], begun: threading.Event, go_on: threading.Event
) -> Steps[str]:
    begun.set()
    go_on.wait(10)
    return (yield from counted(name, steps, log))


async def test_callers_take_turns(turns: Turns) -> None:
    """Who has little to do is done while who has much is not."""
    log: list[str] = []
    begun, go_on = threading.Event(), threading.Event()
    first = asyncio.create_task(turns.finish(held("long", 9, log, begun, go_on)))
    await asyncio.to_thread(begun.wait, 10)
    second = asyncio.create_task(turns.finish(counted("short", 1, log)))
    await asyncio.sleep(0)
    go_on.set()
    assert (await first, await second) == ("long", "short")
    assert log.count("long") == 9
    assert log.index("short") < 4


async def test_errors_of_a_step_are_the_caller_s(turns: Turns) -> None:
    """And end the work."""

    def fail() -> Steps[None]:
        yield
        raise InputTooLong("too long")

    with pytest.raises(InputTooLong):
        await turns.finish(fail())


async def test_who_waits_too_long_for_a_turn_is_refused() -> None:
    """With a time after which to try again; nothing of it is done."""
    turns = Turns(threads=1, max_wait_s=0.05)
    begun, go_on, log = threading.Event(), threading.Event(), list[str]()
    first = asyncio.create_task(turns.finish(held("first", 1, log, begun, go_on)))
    await asyncio.to_thread(begun.wait, 10)
    with pytest.raises(Overloaded) as refused:
        await turns.finish(counted("second", 1, log))
    assert refused.value.retry_after_s == 1
    go_on.set()
    assert await first == "first"
    assert log == ["first"]
    turns.close()
