"""The model cache with models that only count; events, never sleeps, order the threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from shared.errors import InvalidArtefact, ModelLoadFailed, StoreUnavailable, Unavailable, UnknownModel
from shared.inference import load_failures
from shared.inference.loaded_models import Entry
from shared.inference.model_cache import ModelCache
from shared.observability.metrics import Telemetry
from tests.fakes.clock import Clock
from tests.fakes.shelf import Pinned, Shelf, ShelvedModel
from tests.patience import PATIENCE_S


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_cache(shelf: Shelf, clock: Clock) -> Iterator[Callable[..., ModelCache]]:
    """Caches over the shelf, closed after the test."""
    caches: list[ModelCache] = []

    def make(max_models: int = 4, max_bytes: int = 1000, metrics: Telemetry | None = None) -> ModelCache:
        cache = ModelCache(
            find_revision=shelf.find_revision,
            load=shelf.load,
            max_models=max_models,
            max_bytes=max_bytes,
            refresh_s=60,
            clock=clock,
            metrics=metrics or Telemetry(CollectorRegistry()),
        )
        caches.append(cache)
        return cache

    yield make
    for gate in shelf.gates.values():
        gate.set()
    for cache in caches:
        cache.close()


OpenCache = Callable[..., ModelCache]


async def touch(cache: ModelCache, name: str) -> ShelvedModel:
    async with cache.lease(name) as model:
        return cast(ShelvedModel, model)


async def happened(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE_S)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - other threads set it
            await asyncio.sleep(0.001)


async def all_parked(tasks: list[asyncio.Task[ShelvedModel]]) -> None:
    """Let every task run up to where it waits for the load."""
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


@pytest.mark.anyio
async def test_fifty_concurrent_misses_make_one_load(shelf: Shelf, open_cache: OpenCache) -> None:
    """Whoever asks while a model loads waits for that load, and all get the same model."""
    cache, gate = open_cache(), shelf.hold("a")
    tasks = [asyncio.create_task(touch(cache, "a")) for _ in range(50)]
    await all_parked(tasks)
    gate.set()
    assert set(await asyncio.gather(*tasks)) == {shelf.one("a")}
    assert shelf.finds == ["a"]


@pytest.mark.anyio
async def test_different_models_load_side_by_side(shelf: Shelf, open_cache: OpenCache) -> None:
    """A slow load does not hold up another model's: both are inside `load` at once."""
    cache = open_cache()
    gates = [shelf.hold("a"), shelf.hold("b")]
    tasks = [asyncio.create_task(touch(cache, name)) for name in ("a", "b")]
    await happened(shelf.entered["a"])
    await happened(shelf.entered["b"])
    for gate in gates:
        gate.set()
    await asyncio.gather(*tasks)


@pytest.mark.anyio
async def test_a_hit_needs_no_thread(shelf: Shelf, open_cache: OpenCache) -> None:
    """A lease of a loaded model is taken without once giving the event loop back."""
    cache = open_cache()
    first = await touch(cache, "a")
    coroutine = touch(cache, "a")
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    assert done.value.value is first


@pytest.mark.anyio
async def test_the_least_recently_used_model_is_evicted(shelf: Shelf, open_cache: OpenCache) -> None:
    """A third model in a cache for two closes the one whose last lease is oldest."""
    cache = open_cache(max_models=2)
    for name in ("a", "b", "a", "c"):
        await touch(cache, name)
    await happened(shelf.one("b").closed)
    assert not shelf.one("a").closed.is_set()
    assert {name for name, state in cache.states(()).items() if state.state == "warm"} == {"a", "c"}


@pytest.mark.anyio
async def test_bytes_evict_as_many_as_they_need(shelf: Shelf, open_cache: OpenCache) -> None:
    """One large model may push out several small ones, and stays even if it alone is too large."""
    cache = open_cache(max_bytes=25)
    await touch(cache, "a")
    await touch(cache, "b")
    shelf.memory_bytes = 30
    large = await touch(cache, "large")
    await happened(shelf.one("a").closed)
    await happened(shelf.one("b").closed)
    assert await touch(cache, "large") is large
    assert not large.closed.is_set()


@pytest.mark.anyio
async def test_a_leased_model_is_never_closed(shelf: Shelf, open_cache: OpenCache) -> None:
    """With every model leased the cache exceeds its limit, and shrinks when leases end."""
    cache = open_cache(max_models=1)
    async with cache.lease("a"), cache.lease("b"):
        await touch(cache, "c")
        assert not any(shelf.one(name).closed.is_set() for name in ("a", "b"))
    await happened(shelf.one("a").closed)
    await happened(shelf.one("b").closed)
    assert not shelf.one("c").closed.is_set()


@pytest.mark.anyio
async def test_a_model_evicted_is_loaded_again(shelf: Shelf, open_cache: OpenCache) -> None:
    """Eviction forgets nothing but the engine."""
    cache = open_cache(max_models=1)
    for name in ("a", "b", "a"):
        await touch(cache, name)
    assert shelf.names() == ["a", "b", "a"]


@pytest.mark.anyio
async def test_a_failed_load_evicts_nothing_and_backs_off(
    shelf: Shelf, clock: Clock, open_cache: OpenCache
) -> None:
    """Failures answer at once with the time left, 1 s doubling to 60 s, and a success ends that."""
    cache = open_cache(max_models=1)
    await touch(cache, "a")
    shelf.errors["bad"] = InvalidArtefact("model.onnx is missing")
    delays = []
    for _ in range(8):
        with pytest.raises(ModelLoadFailed, match=r"model\.onnx is missing") as caught:
            await touch(cache, "bad")
        delays.append(caught.value.retry_after_s)
        finds = len(shelf.finds)
        clock.now += 0.25
        with pytest.raises(ModelLoadFailed) as again:
            await touch(cache, "bad")
        assert again.value.retry_after_s == pytest.approx((delays[-1] or 0) - 0.25)
        assert len(shelf.finds) == finds
        clock.now += delays[-1] or 0
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
    assert cache.states(["bad"])["bad"].state == "failed"
    assert not shelf.one("a").closed.is_set()
    del shelf.errors["bad"]
    await touch(cache, "bad")
    assert cache.states(["bad"])["bad"].state == "warm"


@pytest.mark.anyio
async def test_what_failed_is_listed_as_long_as_it_is_published(
    shelf: Shelf, open_cache: OpenCache
) -> None:
    """Once it is withdrawn nobody is to look for it; a model to be warmed somebody still waits for."""
    cache = open_cache()
    for name in ("bad", "wanted"):
        shelf.errors[name] = InvalidArtefact("the model's file model.onnx is missing")
    with pytest.raises(ModelLoadFailed):
        await touch(cache, "bad")
    cache.warm(["wanted"])
    await until(lambda: cache.states(())["wanted"].state == "failed")
    states = cache.states(["bad", "cold"])
    assert {name: each.state for name, each in states.items()} == {
        "bad": "failed",
        "cold": "cold",
        "wanted": "failed",
    }
    assert set(cache.states(["cold"])) == {"cold", "wanted"}


@pytest.mark.anyio
async def test_an_unexpected_error_shows_no_internals(shelf: Shelf, open_cache: OpenCache) -> None:
    """What a library raises is logged, not sent to clients."""
    shelf.errors["a"] = RuntimeError("/secret/path")
    with pytest.raises(ModelLoadFailed) as caught:
        await touch(open_cache(), "a")
    assert "secret" not in str(caught.value)


@pytest.mark.anyio
async def test_an_unknown_model_is_asked_for_each_time(shelf: Shelf, open_cache: OpenCache) -> None:
    """UnknownModel passes as it is and is not remembered: the model may be published any moment."""
    cache = open_cache()
    for _ in range(2):
        with pytest.raises(UnknownModel):
            await touch(cache, "unknown")
    assert shelf.finds == ["unknown", "unknown"]
    assert cache.states(()) == {}


@pytest.mark.anyio
async def test_a_caller_that_leaves_does_not_end_the_load(shelf: Shelf, open_cache: OpenCache) -> None:
    """The others still get the model, and the one that left holds no lease."""
    cache, gate = open_cache(max_models=1), shelf.hold("a")
    tasks = [asyncio.create_task(touch(cache, "a")) for _ in range(3)]
    await all_parked(tasks)
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    assert tasks[0].cancelled()
    gate.set()
    assert await tasks[1] is await tasks[2] is shelf.one("a")
    await touch(cache, "b")
    await happened(shelf.one("a").closed)


@pytest.mark.anyio
async def test_a_caller_that_leaves_as_the_load_ends_holds_no_lease(
    shelf: Shelf, open_cache: OpenCache
) -> None:
    """The load is done but the caller has not run yet when it is cancelled: its lease is given back."""
    cache, gate = open_cache(max_models=1), shelf.hold("a")
    task = asyncio.create_task(touch(cache, "a"))
    await all_parked([task])
    gate.set()
    while cache.states(())["a"].state != "warm":  # blocks the loop on purpose
        pass
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    await touch(cache, "b")
    await happened(shelf.one("a").closed)


@pytest.mark.anyio
async def test_a_model_that_is_replaced_while_it_arrives_is_open_as_long_as_it_is_leased(
    shelf: Shelf, clock: Clock, open_cache: OpenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that loaded it stands still once its lease is given, until a new revision is served."""
    cache, replaced, loader = open_cache(), threading.Event(), []
    set_result = Future.set_result

    def set_and_stand(future: Future[object], result: object) -> None:
        set_result(future, result)
        if isinstance(result, Entry) and result.revision == "r1":
            loader.append(threading.current_thread())
            assert replaced.wait(PATIENCE_S)

    monkeypatch.setattr(Future, "set_result", set_and_stand)
    async with cache.lease("a"):
        clock.now += 61
        shelf.revisions["a"] = "r2"
        await touch(cache, "a")
        await until(lambda: cache.states(())["a"].revision == "r2")
        replaced.set()
        cache.close()  # so that the thread ends with what it does
        await asyncio.to_thread(loader[0].join)
        assert not shelf.one("a").closed.is_set()
    assert shelf.one("a").closed.is_set()


@pytest.mark.anyio
async def test_a_new_revision_replaces_the_old_without_a_gap(
    shelf: Shelf, clock: Clock, open_cache: OpenCache
) -> None:
    """The old one serves while the new one loads, and is closed when its last lease ends."""
    cache = open_cache()
    async with cache.lease("a"):
        clock.now += 61
        shelf.revisions["a"] = "r2"
        gate = shelf.hold("a")
        assert await touch(cache, "a") is shelf.one("a")
        await happened(shelf.entered["a"])
        assert await touch(cache, "a") is shelf.one("a")
        gate.set()
        await until(lambda: cache.states(())["a"].revision == "r2")
        assert (await touch(cache, "a")).revision == "r2"
        assert not shelf.one("a").closed.is_set()
    await happened(shelf.one("a").closed)
    assert not shelf.one("a", "r2").closed.is_set()
    assert len(shelf.loaded) == 2


@pytest.mark.anyio
async def test_the_revision_is_not_looked_up_before_its_time(
    shelf: Shelf, clock: Clock, open_cache: OpenCache
) -> None:
    """A hit younger than refresh_s asks the store nothing; an unchanged revision loads nothing."""
    cache = open_cache()
    await touch(cache, "a")
    clock.now += 59
    await touch(cache, "a")
    assert len(shelf.finds) == 1
    clock.now += 2
    await touch(cache, "a")
    await until(lambda: len(shelf.finds) == 2)
    assert len(shelf.loaded) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("error", [StoreUnavailable("gone"), RuntimeError("odd")])
async def test_a_failed_refresh_keeps_the_old_model(
    shelf: Shelf, clock: Clock, open_cache: OpenCache, error: Exception
) -> None:
    """A new revision that does not load changes nothing for callers, and is tried again later."""
    cache = open_cache()
    old = await touch(cache, "a")
    shelf.revisions["a"], shelf.errors["a"] = "r2", error
    for round_ in (2, 3):
        clock.now += 61
        assert await touch(cache, "a") is old
        await until(lambda wanted=round_: len(shelf.finds) == wanted)  # type: ignore[misc]
        await until(lambda: not cache._models._names["a"].checking)
    assert cache.states(())["a"].state == "warm"
    assert not old.closed.is_set()
    del shelf.errors["a"]
    clock.now += 61
    await touch(cache, "a")
    await until(lambda: cache.states(())["a"].revision == "r2")


@pytest.mark.anyio
async def test_warming_loads_in_the_background_and_tries_again(
    shelf: Shelf, open_cache: OpenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """warm returns before the loads, and tries again what failed, without a request."""
    monkeypatch.setattr(load_failures, "FIRST_RETRY_S", 0.01)
    cache, gate = open_cache(), shelf.hold("a")
    shelf.errors["b"] = StoreUnavailable("gone")
    cache.warm(["a", "b"])
    await happened(shelf.entered["a"])
    await until(lambda: cache.states(())["b"].state == "failed")
    assert cache.states(())["a"].state == "loading"
    gate.set()
    del shelf.errors["b"]
    cache._clock.now += 61  # type: ignore[attr-defined]
    await until(lambda: {state.state for state in cache.states(()).values()} == {"warm"})


@pytest.mark.anyio
async def test_a_warm_model_that_does_not_exist_is_reported(
    shelf: Shelf,
    open_cache: OpenCache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """/ready can say which of the models to warm is not in the store; so does the log, once."""
    monkeypatch.setattr(load_failures, "FIRST_RETRY_S", 0.01)
    cache = open_cache()
    cache.warm(["unknown"])
    await until(lambda: shelf.finds.count("unknown") >= 3)
    assert "there is no model unknown" in (cache.states(())["unknown"].reason or "")
    assert "the model unknown did not load: there is no model unknown" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.anyio
async def test_closing_waits_for_leases_and_ends_waiting_callers(
    shelf: Shelf, open_cache: OpenCache
) -> None:
    """Idle models close at once, leased ones when back; callers that wait or come get Unavailable."""
    cache, gate = open_cache(), shelf.hold("slow")
    await touch(cache, "idle")
    async with cache.lease("leased"):
        waiting = asyncio.create_task(touch(cache, "slow"))
        await happened(shelf.entered["slow"])
        cache.close()
        await happened(shelf.one("idle").closed)
        assert not shelf.one("leased").closed.is_set()
        refused: list[Awaitable[ShelvedModel]] = [waiting, touch(cache, "idle")]
        for call in refused:
            with pytest.raises(Unavailable):
                await call
    await happened(shelf.one("leased").closed)
    gate.set()
    await until(lambda: "slow" in shelf.names())
    await happened(shelf.one("slow").closed)


@pytest.mark.anyio
async def test_hits_misses_loads_and_evictions_are_counted(shelf: Shelf, open_cache: OpenCache) -> None:
    """Under the names of the metrics' table."""
    telemetry = Telemetry(CollectorRegistry())
    cache = open_cache(max_models=1, metrics=telemetry)
    for name in ("a", "a", "b"):
        await touch(cache, name)
    shelf.errors["bad"] = InvalidArtefact("bad")
    with pytest.raises(ModelLoadFailed):
        await touch(cache, "bad")
    lines = telemetry.render().decode().splitlines()
    for line in (
        "blitz_cache_hits 1.0",
        "blitz_cache_misses 3.0",
        "blitz_cache_evictions 1.0",
        "blitz_cache_load_failures 1.0",
        "blitz_cache_models 1.0",
        "blitz_cache_bytes 10.0",
    ):
        assert line in lines


@pytest.fixture
def pinned() -> Pinned:
    return Pinned()


@pytest.fixture
def open_pinned(pinned: Pinned, clock: Clock) -> Iterator[Callable[..., ModelCache]]:
    caches: list[ModelCache] = []

    def make(max_models: int, metrics: Telemetry | None = None) -> ModelCache:
        caches.append(
            ModelCache(
                find_revision=pinned.find_revision,
                load=pinned.load,
                max_models=max_models,
                max_bytes=1000,
                refresh_s=60,
                clock=clock,
                metrics=metrics or Telemetry(CollectorRegistry()),
            )
        )
        return caches[-1]

    yield make
    for gate in pinned.gates.values():
        gate.set()
    for cache in caches:
        cache.close()


@pytest.mark.anyio
@pytest.mark.parametrize("names", [("a", "a@r1"), ("a@r1", "a")])
async def test_a_revision_has_one_entry_whatever_it_is_called(
    names: tuple[str, str], pinned: Pinned, open_pinned: OpenCache
) -> None:
    """A bulk job that pins it neither loads it again nor evicts another model."""
    cache = open_pinned(2)
    first = await touch(cache, names[0])
    other = await touch(cache, "b")
    assert await touch(cache, names[1]) is first
    assert pinned.names() == ["a", "b"]
    assert not other.closed.is_set()
    states = {name: state.state for name, state in cache.states(["a", "b"]).items()}
    assert states == {"a": "warm", "a@r1": "warm", "b": "warm"}


@pytest.mark.anyio
async def test_names_asked_for_at_once_share_a_load(pinned: Pinned, open_pinned: OpenCache) -> None:
    """And each of their callers has a lease: it is not closed before the last is back."""
    cache = open_pinned(1)
    gate = pinned.hold("a")
    both = [asyncio.create_task(touch(cache, name)) for name in ("a", "a@r1", "a", "a@r1")]
    await happened(pinned.entered["a"])
    await until(lambda: sum(len(loads) for loads in cache._opening.values()) == 2)
    gate.set()
    models = await asyncio.gather(*both)
    assert len({id(model) for model in models}) == 1
    assert pinned.names() == ["a"]


@pytest.mark.anyio
async def test_a_load_that_fails_fails_for_all_its_names(
    pinned: Pinned, open_pinned: OpenCache, clock: Clock
) -> None:
    """And both can be tried again."""
    cache = open_pinned(1)
    pinned.errors["a"] = InvalidArtefact("it is broken")
    for name in ("a", "a@r1"):
        with pytest.raises(ModelLoadFailed, match=f"the model {name} did not load: it is broken"):
            await touch(cache, name)
    pinned.errors.clear()
    clock.now += 100
    assert await touch(cache, "a") is await touch(cache, "a@r1")


@pytest.mark.anyio
async def test_a_pinned_revision_outlives_its_replacement(
    pinned: Pinned, open_pinned: OpenCache, clock: Clock
) -> None:
    """A name goes to the new revision; what a job has pinned stays under the name that it has."""
    cache = open_pinned(2)
    old = await touch(cache, "a")
    assert await touch(cache, "a@r1") is old
    pinned.revisions["a"] = "r2"
    clock.now += 61
    await touch(cache, "a")
    await until(lambda: len(pinned.loaded) == 2 and not cache._models._names["a@r1"].checking)
    new = await touch(cache, "a")
    assert (new.revision, old.closed.is_set()) == ("r2", False)
    assert await touch(cache, "a@r1") is old
    assert await touch(cache, "a@r2") is new
    assert len(pinned.loaded) == 2


@pytest.mark.anyio
async def test_a_new_revision_that_is_pinned_already_is_not_loaded_again(
    pinned: Pinned, open_pinned: OpenCache, clock: Clock
) -> None:
    """The name that is renewed goes over to it, and the old one, which has no other name, is closed."""
    cache = open_pinned(3)
    old = await touch(cache, "a")
    pinned.revisions["a"] = "r2"
    new = await touch(cache, "a@r2")
    clock.now += 61
    await touch(cache, "a")
    await happened(old.closed)
    assert await touch(cache, "a") is new
    assert len(pinned.loaded) == 2


@pytest.mark.anyio
async def test_an_evicted_model_has_no_name_left(pinned: Pinned, open_pinned: OpenCache) -> None:
    """Either use keeps it, eviction takes both."""
    registry = CollectorRegistry()
    cache = open_pinned(2, metrics=Telemetry(registry))
    first = await touch(cache, "a")
    await touch(cache, "b")
    await touch(cache, "a@r1")  # a use of it
    await touch(cache, "c")
    assert not first.closed.is_set()
    await touch(cache, "d")
    await happened(first.closed)
    assert not {"a", "a@r1"} & cache.states([]).keys()
    assert await touch(cache, "a") is not first


@pytest.mark.anyio
async def test_a_pinned_revision_is_never_looked_for_again(
    pinned: Pinned, open_pinned: OpenCache, clock: Clock
) -> None:
    """It is what it is."""
    cache = open_pinned(1)
    await touch(cache, "a@r1")
    clock.now += 1000
    await touch(cache, "a@r1")
    assert pinned.finds == []
    pinned.revisions["a"] = "r2"
    assert (await touch(cache, "a")).revision == "r2"
