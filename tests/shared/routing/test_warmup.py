"""Counting what the GPU is wanted for, and the timer that wakes it; also in the worker library."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from shared.errors import Misconfigured, StoreUnavailable
from shared.routing import warmup
from shared.routing.forecast import SLOT_S, SLOTS, WEEK_S, State, add_counts, begin, slot_at
from shared.routing.warmup import KEY, WarmUp
from shared.settings import Settings
from shared.storage.blobs import BlobStat
from shared.storage.connect import open_storage
from tests.fakes.memory import Fuse, MemoryBlobs
from tests.functions.worker import running_worker
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

MONDAY_S = 4 * 86_400.0 + 2_000 * WEEK_S


class Blobs(MemoryBlobs):
    """Others write before each of the next `rivals` writes; not there at all while `down`."""

    def __init__(self) -> None:
        super().__init__(Fuse(), lambda: 0.0)
        self.rivals = 0
        self.down = False
        self.created = threading.Event()

    def create(self, key: str, data: bytes | Path) -> bool:
        created = super().create(key, data)
        self.created.set()
        return created

    def stat(self, key: str) -> BlobStat | None:
        if self.down:
            raise StoreUnavailable("the storage is away")
        return super().stat(key)

    def replace(self, key: str, data: bytes | Path, *, etag: str) -> bool:
        if self.rivals:
            self.rivals -= 1
            state = add_counts(self.state, {slot_at(MONDAY_S): 1}, MONDAY_S)
            self.write(key, msgspec.json.encode(state))
        return super().replace(key, data, etag=etag)

    @property
    def state(self) -> State:
        return msgspec.json.decode(self.blobs[KEY][0], type=State)

    @state.setter
    def state(self, state: State) -> None:
        self.write(KEY, msgspec.json.encode(state))


class Process:
    """One instance: its warm-up, its clock, and how often it woke the GPU."""

    def __init__(self, blobs: Blobs) -> None:
        self.now_s = MONDAY_S
        self.wakes = 0
        self.warm_up = WarmUp(
            blobs,
            self._wake,
            gpu_s_per_request=180.0,
            wake_s=25.0,
            idle_s=300.0,
            clock=lambda: self.now_s,
        )

    async def _wake(self) -> None:
        self.wakes += 1


def _busy(until_s: float) -> State:
    """Two requests a minute, at all hours of the four weeks before."""
    began_s = until_s - 4 * WEEK_S
    state = begin(began_s)
    for hour in range(4 * SLOTS):
        end_s = began_s + (hour + 1) * SLOT_S
        state = add_counts(state, {slot_at(end_s - 1): 120}, end_s)
    return state


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


async def test_what_is_counted_is_written_without_a_timer(blobs: Blobs) -> None:
    """The instance that serves requests is not the one that has the timer."""
    process = Process(blobs)
    process.warm_up.count()
    process.warm_up.count()
    await process.warm_up.flush()
    assert sum(blobs.state.levels) == 2
    assert blobs.state.came == 2


async def test_counting_alone_gets_written(blobs: Blobs) -> None:
    """In the background, at once; no call but `count` is needed."""
    process = Process(blobs)
    process.warm_up.count()
    assert await asyncio.to_thread(blobs.created.wait, PATIENCE_S)
    assert sum(blobs.state.levels) == 1


async def test_counts_of_several_instances_add_up(blobs: Blobs) -> None:
    """Each writes only over what it has read, and tries again."""
    one, other = Process(blobs), Process(blobs)
    one.warm_up.count()
    await one.warm_up.flush()
    blobs.rivals = 3
    other.warm_up.count()
    await other.warm_up.flush()
    assert sum(blobs.state.levels) == 5


async def test_counts_survive_a_storage_that_is_away(
    blobs: Blobs, caplog: pytest.LogCaptureFixture
) -> None:
    """They are written with the next ones; nobody's request fails, and the log says why."""
    process = Process(blobs)
    blobs.down = True
    process.warm_up.count()
    await process.warm_up.flush()
    await process.warm_up.tick()
    assert "the storage is away" in caplog.text
    blobs.down = False
    await process.warm_up.flush()
    assert sum(blobs.state.levels) == 1
    assert process.wakes == 0


async def test_a_rush_of_writers_gives_up_and_keeps_its_counts(blobs: Blobs) -> None:
    """If others are always first, the counts wait."""
    process = Process(blobs)
    blobs.state = begin(MONDAY_S)
    blobs.rivals = 8
    process.warm_up.count()
    await process.warm_up.flush()
    assert sum(blobs.state.levels) == 8
    await process.warm_up.flush()
    assert sum(blobs.state.levels) == 9


async def test_the_timer_wakes_the_gpu_when_it_will_be_wanted(blobs: Blobs) -> None:
    """And again when its cool-down is over, not before."""
    blobs.state = _busy(MONDAY_S)
    process = Process(blobs)
    await process.warm_up.tick()
    assert process.wakes == 1
    assert blobs.state.woken_s == MONDAY_S
    process.now_s += 100
    await process.warm_up.tick()
    assert process.wakes == 1
    process.now_s += 200
    await process.warm_up.tick()
    assert process.wakes == 2


async def test_of_many_timers_one_wakes_it(blobs: Blobs) -> None:
    """Whoever writes first has decided; the others read that."""
    blobs.state = _busy(MONDAY_S)
    processes = [Process(blobs) for _ in range(5)]
    for process in processes:
        await process.warm_up.tick()
    assert sum(process.wakes for process in processes) == 1


async def test_nobody_is_woken_for_when_nothing_is_known(blobs: Blobs) -> None:
    """The first tick of a new deployment begins to learn."""
    process = Process(blobs)
    await process.warm_up.tick()
    assert process.wakes == 0
    assert blobs.state.began_s == MONDAY_S


async def test_an_instance_learns_that_another_woke_the_gpu(blobs: Blobs) -> None:
    """Its routing must take the GPU for warm: it asks once, and not any more after the cool-down."""
    blobs.state = _busy(MONDAY_S)
    timer, server, late = Process(blobs), Process(blobs), Process(blobs)
    await timer.warm_up.tick()
    for _ in range(2):
        server.now_s += 60
        server.warm_up.count()
        await server.warm_up.flush()
    assert server.wakes == 1
    await timer.warm_up.flush()
    assert timer.wakes == 1
    late.now_s += 400
    await late.warm_up.flush()
    assert late.wakes == 0


@pytest.mark.parametrize("data", [b"", b"garbage", b'{"version": 2}'])
async def test_a_state_that_cannot_be_read_is_learned_anew(blobs: Blobs, data: bytes) -> None:
    """A blob of another version must not stop the counting for ever."""
    blobs.write(KEY, data)
    process = Process(blobs)
    process.warm_up.count()
    await process.warm_up.flush()
    assert sum(blobs.state.levels) == 1


async def test_it_needs_a_place_for_what_is_learned() -> None:
    """An instance's own disk would be forgotten with the instance."""

    async def wake() -> None:
        raise AssertionError

    with pytest.raises(Misconfigured, match="BLITZ_STORAGE"):
        warmup.connect(Settings(gpu_ahead_s=180.0), wake)


class _Gpu(BaseHTTPRequestHandler):
    asked: list[str] = []
    answered = threading.Event()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
        self.answered.set()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def gpu() -> Iterator[str]:
    """URL of something that answers /health as a GPU app that is up."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Gpu)
    _Gpu.asked.clear()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_router_has_the_timer_and_it_reaches_the_gpu(gpu: str, tmp_path: Path) -> None:
    """In the worker library: what the host indexes, and a tick that ends once the GPU has answered."""
    storage = f"file://{tmp_path / 'bulk'}"
    out = open_storage(Settings(storage=storage)).out
    out.create(KEY, msgspec.json.encode(_busy(time.time())))
    settings = {
        "BLITZ_ROLE": "router",
        "BLITZ_MODEL_STORE": f"file://{tmp_path / 'models'}",
        "BLITZ_STORAGE": storage,
        "BLITZ_CPU_BACKEND_URL": "http://127.0.0.1:9",
        "BLITZ_GPU_BACKEND_URL": gpu,
        "BLITZ_GPU_AHEAD_S": "180",
    }
    with running_worker(settings) as worker:
        functions = worker.functions()
        # Not `warmup`: the host takes a function of that name for its trigger of that name.
        assert set(functions) == {"http_app_func", "wake_ahead"}
        (trigger,) = functions["wake_ahead"]
        assert (trigger["type"], trigger["schedule"]) == ("timerTrigger", warmup.SCHEDULE)
        assert trigger["runOnStartup"] is False
        worker.timer("wake_ahead")
        worker.timer("wake_ahead")
    assert _Gpu.asked == ["/health"]
