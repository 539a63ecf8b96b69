"""What is listed of a store, how often it is asked, and who waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from typing import Any, cast

import pytest

from shared.cards import Device
from shared.errors import StoreUnavailable
from shared.models.catalogue import CARDS_S, Catalogue
from shared.models.store import ModelStore
from tests.fakes.clock import Clock
from tests.fakes.store import REQUEST, FakeStore
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio


def catalogue(store: FakeStore, *devices: Device, clock: Clock | None = None) -> Catalogue:
    return Catalogue(cast(ModelStore, store), devices, clock or Clock())


async def test_there_is_a_card_for_each_model_and_device() -> None:
    """Only for devices asked for; one broken model does not hide the others."""
    both = await catalogue(FakeStore(), "cpu", "gpu").cards()
    assert [(c.name, c.device) for c in both] == [("a", "cpu"), ("a", "gpu"), ("b", "cpu"), ("c", "gpu")]
    cpu = await catalogue(FakeStore(), "cpu").cards()
    assert [(c.name, c.revision, c.target) for c in cpu] == [
        ("a", "r1", "cpu-int8"),
        ("b", "r1", "cpu-int8"),
    ]
    assert cpu[0].prompts == ("document", "query")


async def test_callers_at_the_same_time_share_one_listing() -> None:
    """And those shortly after, too."""
    store = FakeStore()
    listed = catalogue(store, "cpu")
    first, second, _ = await asyncio.gather(listed.cards(), listed.cards(), listed.cards_of("a"))
    assert first == second == await listed.cards()
    assert store.listings == 1


async def test_cards_are_of_now() -> None:
    """After CARDS_S who asks for all waits for a new listing: a bulk job must find its new model."""
    store, clock = FakeStore(), Clock()
    listed = catalogue(store, "cpu", clock=clock)
    await listed.cards()
    store.held = ["b"]
    clock.now += CARDS_S - 0.01
    assert len(await listed.cards()) == 2
    clock.now += 0.01
    assert [card.name for card in await listed.cards()] == ["b"]


async def test_the_cards_of_a_known_model_wait_for_nothing() -> None:
    """They are the old ones while new ones are listed, and the new ones after that."""
    store, clock = FakeStore(), Clock()
    listed = catalogue(store, "cpu", "gpu", clock=clock)
    assert [card.device for card in await listed.cards_of("a")] == ["cpu", "gpu"]
    clock.now += CARDS_S
    store.open.clear()
    store.held = ["b"]
    assert without_waiting(listed.cards_of("a")) == without_waiting(listed.cards_of("a")) != []
    assert store.asked.acquire(timeout=PATIENCE_S)
    store.open.set()
    await listed.cards()
    assert without_waiting(listed.cards_of("a")) == []
    assert store.listings == 2


async def test_an_unknown_model_is_looked_for_and_not_at_every_request() -> None:
    """A new one is found, once CARDS_S have passed; made-up names do not have the store listed each."""
    store, clock = FakeStore(), Clock()
    store.held = ["a"]
    listed = catalogue(store, "cpu", clock=clock)
    assert await listed.cards_of("b") == []
    store.held = ["a", "b"]
    found = await asyncio.gather(*(listed.cards_of(name) for name in ("b", "x", "y", "z") * 10))
    assert not any(found)
    assert store.listings == 1
    clock.now += CARDS_S
    found = await asyncio.gather(*(listed.cards_of(name) for name in ("b", "x", "y", "z") * 10))
    assert [len(cards) for cards in found] == [1, 0, 0, 0] * 10
    assert store.listings == 2


async def test_while_the_store_is_down_what_was_known_before_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever asks gets it; the log says so once for each listing that failed."""
    store, clock = FakeStore(), Clock()
    listed = catalogue(store, "cpu", clock=clock)
    known = await listed.cards()
    caplog.clear()
    store.error = StoreUnavailable("the model store did not answer")
    for _ in range(2):
        clock.now += CARDS_S
        for _ in range(3):
            assert await listed.cards() == known
            assert len(await listed.cards_of("a")) == 1
            assert await listed.cards_of("new") == []
    told = [message for message in caplog.messages if "the model store did not answer" in message]
    assert len(told) == store.listings - 1 == 2


@pytest.mark.parametrize("error", [StoreUnavailable("the model store did not answer"), OSError("odd")])
async def test_a_store_that_was_never_listed_is_asked_again(error: Exception) -> None:
    """Not by each caller: for CARDS_S the failure stands. Routing goes on, by nothing."""
    store, clock = FakeStore(), Clock()
    store.error = error
    listed = catalogue(store, "cpu", clock=clock)
    for _ in range(3):
        with pytest.raises(type(error)):
            await listed.cards()
        assert await listed.cards_of("a") == []
    assert store.listings == 1
    store.error = None
    clock.now += CARDS_S
    assert await listed.cards()


async def test_a_caller_that_leaves_ends_no_listing() -> None:
    """Others wait for the same one, and it carries nothing of the request that began it."""
    store = FakeStore()
    store.open.clear()
    listed = catalogue(store, "cpu")
    REQUEST.set("a caller's")
    leaving = asyncio.ensure_future(listed.cards())
    staying = asyncio.ensure_future(listed.cards())
    assert await asyncio.to_thread(store.asked.acquire, timeout=PATIENCE_S)
    leaving.cancel()
    await asyncio.wait([leaving])
    store.open.set()
    assert len(await staying) == 2
    assert store.seen == [None]


def test_it_serves_several_event_loops_and_threads() -> None:
    """One listing for all; a loop that ends while it is made leaves nothing behind."""
    store = FakeStore()
    store.open.clear()
    listed = catalogue(store, "cpu")

    async def leave_soon() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(listed.cards(), 0.01)

    asyncio.run(leave_soon())
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(asyncio.run(listed.cards()))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    store.open.set()
    for thread in threads:
        thread.join()
    assert [len(cards) for cards in results] == [2, 2, 2]
    assert store.listings == 1


def without_waiting(call: Awaitable[Any]) -> Any:
    """What `call` returns, if it never suspends."""
    with pytest.raises(StopIteration) as ended:
        call.__await__().__next__()
    return ended.value.value
