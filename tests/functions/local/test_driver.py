"""Bulk work on one machine: what the driver does with messages, and real services over a folder."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from functions.bulk.steps import build_bulk
from functions.local.driver import MAX_TRIES, RETRY_S, Driver, Pace, bulk_hint, make_inboxes
from shared.backends.base import Backend
from shared.bulk import control, jobs
from shared.bulk.inputs.allowance import NO_LIMITS
from shared.bulk.paths import event_key
from shared.bulk.pipeline import SPLITS, Bulk
from shared.cards import ModelCard, Task
from shared.errors import StoreUnavailable, Unavailable
from shared.routing.policy import fixed
from shared.settings import Settings
from shared.storage import shown_names
from shared.storage.blobs import Blobs, Message, Queue, Storage
from shared.storage.connect import local_storage, open_storage
from tests.fakes.catalogue import FakeCatalogue, bulk_cards
from tests.fakes.embedder import FakeEmbedder
from tests.patience import PATIENCE_S, wait_until
from tests.server import ROOT, free_port, metrics_of, started_service, wait_until_ready
from tests.tiny import Tiny, nearly, publish_all

FAST = Pace(hidden_s=3600, retry_s=0.05, poll_s=0.01, reconcile_s=3600)
RENEWING = replace(FAST, hidden_s=0.05)
"""Only for queues that hide for longer: how fast this machine is must not be what is tested."""
EMBEDDED = 'blitz_bulk_rows{outcome="embedded"}'
TINY, SLOW = Tiny("tiny"), Tiny("slow", dimensions=256, work=20)

# --- the driver alone


class Steps:
    """Stands for Bulk: keeps what it is called with, and fails or hangs as told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []
        self.fail = 0
        self.hang = False
        self.stopped = False
        self.called = asyncio.Event()

    async def _step(self, name: str, body: bytes) -> None:
        self.calls.append((name, body))
        self.called.set()
        if self.hang:
            await asyncio.Event().wait()
        if self.fail:
            self.fail -= 1
            raise Unavailable("not now")

    async def split(self, body: bytes) -> None:
        await self._step("split", body)

    async def embed(self, body: bytes) -> None:
        await self._step("embed", body)

    async def finish(self, body: bytes) -> None:
        await self._step("finish", body)

    async def give_up(self, body: bytes) -> None:
        self.calls.append(("give_up", body))

    async def notice(self, key: str, etag: str) -> None:
        self.calls.append((key, etag.encode()))

    async def reconcile(self) -> None:
        self.calls.append(("reconcile", b""))

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(Settings(storage=f"file://{tmp_path}"))


async def _driven(
    steps: Steps, storage: Storage, until: Callable[[], bool], device: Any = "cpu"
) -> None:
    """Run a driver until that is so, then stop it."""
    running = asyncio.create_task(Driver(steps, storage, device, FAST).run())  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not until():  # noqa: ASYNC110 - storage has no events
                await asyncio.sleep(0.005)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.mark.anyio
async def test_each_queue_has_its_step_and_what_is_done_is_deleted(storage: Storage) -> None:
    """As the triggers of the CPU app; the GPU's queue is not touched."""
    steps = Steps()
    for name in ("bulk-split", "bulk-cpu", "bulk-finish", "bulk-gpu"):
        storage.queue(name).send(name.encode())

    def done() -> bool:
        names = ("bulk-split", "bulk-cpu", "bulk-finish")
        return not any(storage.queue(name).depth() for name in names)

    await _driven(steps, storage, done)
    expected = {("split", b"bulk-split"), ("embed", b"bulk-cpu"), ("finish", b"bulk-finish")}
    assert set(steps.calls) == expected | {("reconcile", b"")}
    assert storage.queue("bulk-gpu").depth() == 1


@pytest.mark.anyio
async def test_the_gpu_reads_its_queue_and_nothing_else(storage: Storage) -> None:
    """It neither looks for inputs nor reconciles."""
    steps = Steps()
    storage.source.write("m/a.txt", b"w1")
    for name in ("bulk-split", "bulk-gpu"):
        storage.queue(name).send(name.encode())
    await _driven(steps, storage, lambda: not storage.queue("bulk-gpu").depth(), "gpu")
    assert steps.calls == [("embed", b"bulk-gpu")]


@pytest.mark.anyio
async def test_a_step_that_fails_is_tried_again(storage: Storage) -> None:
    """The message stays in the queue until it works."""
    steps = Steps()
    steps.fail = 2
    storage.queue("bulk-cpu").send(b"x")
    await _driven(steps, storage, lambda: not storage.queue("bulk-cpu").depth())
    assert [name for name, _ in steps.calls if name != "reconcile"] == ["embed"] * 3


@pytest.mark.anyio
async def test_what_fails_too_often_is_given_up(storage: Storage) -> None:
    """After as many tries as the Functions host makes."""
    steps = Steps()
    steps.fail = 100
    storage.queue("bulk-cpu").send(b"x")
    await _driven(steps, storage, lambda: not storage.queue("bulk-cpu").depth())
    names = [name for name, _ in steps.calls if name != "reconcile"]
    assert names == ["embed"] * MAX_TRIES + ["give_up"]


@pytest.mark.anyio
async def test_what_failed_waits_before_it_is_tried_again(storage: Storage) -> None:
    """Not as long as what a killed process held: a backend that is away for minutes costs no rows."""
    steps = Steps()
    steps.fail = 1
    queue = Noting(storage.queue("bulk-cpu"))
    queue.send(b"x")
    pace = Pace(hidden_s=3600, retry_s=7200, poll_s=0.01)
    running = asyncio.create_task(Driver(steps, _with(storage, queue), "cpu", pace).run())  # type: ignore[arg-type]
    async with asyncio.timeout(PATIENCE_S):
        while len(queue.hidden_s) < 2:  # noqa: ASYNC110 - storage has no events
            await asyncio.sleep(0.005)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert queue.hidden_s == [3600, 7200]
    assert [name for name, _ in steps.calls if name != "reconcile"] == ["embed"]
    assert queue.depth() == 1
    assert queue.receive(visible_after_s=0) is None


def test_a_message_is_tried_as_often_and_as_soon_as_in_azure() -> None:
    """host.json tells the Functions host what the driver does."""
    queues = json.loads((ROOT / "host.json").read_text())["extensions"]["queues"]
    assert queues["maxDequeueCount"] == MAX_TRIES
    assert queues["visibilityTimeout"] == f"00:{RETRY_S // 60:02.0f}:{RETRY_S % 60:02.0f}"


@pytest.mark.anyio
async def test_what_kills_its_process_is_given_up_untried(storage: Storage) -> None:
    """A message received oftener than it may fail has failed without telling."""
    steps = Steps()
    queue = storage.queue("bulk-cpu")
    queue.send(b"x")
    for _ in range(MAX_TRIES):
        assert queue.receive(visible_after_s=0)
    await _driven(steps, storage, lambda: not queue.depth())
    assert [name for name, _ in steps.calls if name != "reconcile"] == ["give_up"]


@pytest.mark.anyio
async def test_work_under_way_goes_back_to_the_queue_at_the_end(storage: Storage) -> None:
    """Visible at once, so that the next process need not wait until it would be taken for dead."""
    steps = Steps()
    steps.hang = True
    storage.queue("bulk-split").send(b"x")
    driver = Driver(steps, storage, "cpu", Pace(hidden_s=3600))  # type: ignore[arg-type]
    running = asyncio.create_task(driver.run())
    async with asyncio.timeout(PATIENCE_S):
        await steps.called.wait()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert steps.stopped
    message = storage.queue("bulk-split").receive(visible_after_s=1)
    assert message
    assert message.body == b"x"
    assert storage.queue("bulk-split").depth() == 1


@pytest.mark.anyio
async def test_what_is_done_does_not_go_back_to_the_queue_at_the_end(storage: Storage) -> None:
    """Also where the end comes while its message is deleted: it would be done once more."""
    steps = Steps()
    queue = SlowlyDeleting(storage.queue("bulk-cpu"))
    queue.send(b"x")
    running = asyncio.create_task(Driver(steps, _with(storage, queue), "cpu", FAST).run())  # type: ignore[arg-type]
    async with asyncio.timeout(PATIENCE_S):
        while not queue.is_deleting.is_set():  # noqa: ASYNC110 - storage has no events
            await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.sleep(0)
    queue.may_delete.set()
    with suppress(asyncio.CancelledError):
        await running
    assert [name for name, _ in steps.calls if name != "reconcile"] == ["embed"]
    assert queue.depth() == 0


@pytest.mark.anyio
async def test_what_fails_is_told_with_its_queue_and_message(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it is tried again or given up; what is no message of the queue's is dropped at once."""
    steps = Steps()
    steps.fail = 100
    queue = storage.queue("bulk-cpu")
    queue.send(b"zebra")
    message = queue.receive(visible_after_s=0)
    assert message
    await _driven(steps, storage, lambda: not queue.depth())
    lines = [record.getMessage() for record in caplog.records]
    begin = f"bulk: bulk-cpu, message {message.id}: not now; it"
    assert lines == [f"{begin} will be tried again"] * (MAX_TRIES - 2) + [f"{begin} is given up"]
    caplog.clear()
    bulk = build_bulk(Settings(model_store="file:///nowhere"), storage, None)
    queue.send(b"zebra")
    await _driven(bulk, storage, lambda: not queue.depth())  # type: ignore[arg-type]
    [line] = [record.getMessage() for record in caplog.records if "message" in record.getMessage()]
    assert re.fullmatch(
        "bulk: message [0-9a-f]{32} of bulk-cpu is dropped: it is no message of a bulk step", line
    )
    assert "zebra" not in caplog.text


@pytest.mark.anyio
async def test_files_of_the_system_are_passed_over_with_a_line_each(
    storage: Storage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job of them, no message; the others are noticed, and a sidecar, which may come too late."""
    monkeypatch.setattr(shown_names, "_told", set())
    steps = Steps()
    names = {
        "m/.DS_Store": "a hidden file",
        "Thumbs.db": "a file of the system's",
        "m/desktop.ini": "a file of the system's",
        "m/._a.txt": "a hidden file",
        "m/.~lock.a.csv#": "a hidden file",
        "m/~$a.csv": "an editor's own file",
        "m/a.csv.crdownload": "not whole yet, by its name",
        "m/a.csv.PART": "not whole yet, by its name",
        "m/.gitkeep": "a hidden file",
        "m/.git/config": "in a hidden folder, or one of the system's",
        "__MACOSX/m/a.txt": "in a hidden folder, or one of the system's",
    }
    for name in (*names, "m/a.txt", "m/part-0.txt", "m/a.txt.job.json"):
        storage.source.write(name, b"w1")
    await _driven(steps, storage, lambda: len([c for c in steps.calls if c[0].startswith("m/")]) == 3)
    noticed = {"m/a.txt", "m/part-0.txt", "m/a.txt.job.json", "reconcile"}
    assert {name for name, _ in steps.calls} == noticed
    bulk = build_bulk(Settings(model_store="file:///nowhere"), storage, None)
    for name in names:
        await bulk.submit(name, "")
        await bulk.notice(name, "1")
        assert await bulk.split(jobs.encode(jobs.StepMessage(key=name))) is None
    assert storage.queue("bulk-split").depth() == 0
    told = [record.getMessage() for record in caplog.records]
    expected = [f'bulk: "{name}" is {why}, and is passed over' for name, why in names.items()]
    assert sorted(told) == sorted(expected)


@pytest.mark.anyio
async def test_a_name_that_is_none_is_told_of_and_a_failed_job(
    tmp_path: Path, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """Shown so that no terminal obeys it; once, however often one looks."""
    folder = tmp_path / "bulk-in" / "m"
    folder.mkdir(parents=True)
    names = [b"a\\b.txt", b"a\nb.txt", b"a\tb.txt", b"a\xff.txt", b"\x1b[31m.txt", b"a\x7f.txt"]
    for name in names:
        with open(bytes(folder) + b"/" + name, "wb") as file:  # noqa: ASYNC230
            file.write(b"w1")
    bulk = build_bulk(Settings(model_store=f"file://{tmp_path}/none"), storage, None)
    for _ in range(3):
        await bulk.reconcile()
    expected = {"m/" + json.dumps(os.fsdecode(name))[1:-1] for name in names}
    told = [record.getMessage() for record in caplog.records]
    assert {f'bulk: "{name}" cannot be a blob\'s name, and is passed over' for name in expected} == set(
        told
    )
    assert len(told) == len(names)
    assert all(line.isascii() and line.isprintable() for line in told)
    statuses = [
        jobs.decode(storage.out.read(stat.key) or b"", jobs.Status)
        for stat in storage.out.list("jobs/")
        if stat.key.endswith("/status.json")
    ]
    assert {status.source for status in statuses} == expected
    assert {status.status for status in statuses} == {"failed"}
    assert all("no backslashes or control characters" in (s.error or "") for s in statuses)


@pytest.mark.parametrize("length", [242, 243, 246, 247, 250, 255])
@pytest.mark.anyio
async def test_a_name_too_long_for_what_is_made_of_it_fails_at_once(
    storage: Storage, length: int
) -> None:
    """Before anything is read; one that is just not too long is embedded."""
    key = f"m/{'n' * (length - 4)}.txt"
    storage.source.write(key, b"w1")
    stat = storage.source.stat(key)
    assert stat
    backend = cast(Backend, FakeEmbedder())
    bulk = Bulk(
        storage,
        FakeCatalogue(bulk_cards()),
        fixed(10),
        backend=backend,
        devices=("cpu",),
        request_tokens=1000,
        max_inputs=10,
        limits=NO_LIMITS,
        default_model="mini",
    )
    job = await bulk.split(jobs.encode(jobs.StepMessage(key=key, etag=stat.etag)))
    assert job
    status = control.read_status(storage.out, job)
    assert status
    if length <= 242:
        # The name of the folder is that of no model.
        assert "there is no embedding model 'm'" in (status.error or "")
    else:
        assert status.status == "failed"
        assert "the file's name is too long: what is made of it is called NAME.errors.jsonl" in (
            status.error or ""
        )


class Blocking(Steps):
    """A chunk blocks a thread until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self.ended = 0

    async def embed(self, body: bytes) -> None:
        await super().embed(body)
        await asyncio.to_thread(self.let_go.wait, PATIENCE_S)
        self.ended += 1


class Noting:
    """A queue that notes for how long each message was hidden, when it was received and renewed."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.hidden_s: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def receive(self, *, visible_after_s: float) -> Message | None:
        message = self._queue.receive(visible_after_s=visible_after_s)
        if message is not None:
            self.hidden_s.append(visible_after_s)
        return message

    def renew(self, message: Message, *, visible_after_s: float) -> Message | None:
        renewed = self._queue.renew(message, visible_after_s=visible_after_s)
        self.hidden_s.append(visible_after_s)
        return renewed


class SlowlyDeleting:
    """A queue that waits before it deletes."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.is_deleting, self.may_delete = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def delete(self, message: Message) -> None:
        self.is_deleting.set()
        assert self.may_delete.wait(PATIENCE_S)
        self._queue.delete(message)


def _with(storage: Storage, queue: Any) -> Storage:
    """That storage with another queue for the CPU's chunks."""
    return replace(storage, queue=lambda name: queue if name == "bulk-cpu" else storage.queue(name))


class Renewing:
    """A queue that counts renewals, and hides for an hour. before: what happens just before each."""

    def __init__(self, queue: Queue, before: Callable[[Message], None] = lambda message: None) -> None:
        self._queue = queue
        self._before = before
        self.renewals = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def receive(self, *, visible_after_s: float) -> Message | None:
        return self._queue.receive(visible_after_s=3600)

    def renew(self, message: Message, *, visible_after_s: float) -> Message | None:
        self.renewals += 1
        self._before(message)
        return self._queue.renew(message, visible_after_s=3600)


async def _held(steps: Blocking, storage: Storage, queue: Renewing, renewals: int) -> asyncio.Task[None]:
    """A driver that has been in a step for so many renewals of its message."""
    queue.send(b"x")
    watched = _with(storage, queue)
    running = asyncio.create_task(Driver(steps, watched, "cpu", RENEWING).run())  # type: ignore[arg-type]
    async with asyncio.timeout(PATIENCE_S):
        while queue.renewals < renewals:  # noqa: ASYNC110 - storage has no events
            await asyncio.sleep(0.005)
    return running


async def _stop(running: asyncio.Task[None], steps: Blocking, until: Callable[[], bool]) -> None:
    """Let the step end, and the driver once that is so."""
    steps.let_go.set()
    async with asyncio.timeout(PATIENCE_S):
        while not until():  # noqa: ASYNC110 - storage has no events
            await asyncio.sleep(0.005)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


@pytest.mark.anyio
async def test_a_message_is_renewed_while_its_step_runs(storage: Storage) -> None:
    """However long that blocks a thread, and when it ends, the message is deleted."""
    steps, queue = Blocking(), Renewing(storage.queue("bulk-cpu"))
    running = await _held(steps, storage, queue, 5)
    assert queue.depth() == 1
    await _stop(running, steps, lambda: not queue.depth())
    assert [name for name, _ in steps.calls if name != "reconcile"] == ["embed"]


@pytest.mark.anyio
async def test_a_storage_that_is_away_does_not_end_the_renewals(storage: Storage) -> None:
    """The next one is tried in time."""
    tries = iter(range(3))

    def fail(message: Message) -> None:
        if next(tries, None) is not None:
            raise StoreUnavailable("the bulk storage did not answer")

    steps, queue = Blocking(), Renewing(storage.queue("bulk-cpu"), fail)
    running = await _held(steps, storage, queue, 5)
    await _stop(running, steps, lambda: not queue.depth())
    assert [name for name, _ in steps.calls if name != "reconcile"] == ["embed"]


@pytest.mark.anyio
@pytest.mark.parametrize("ends", [True, False], ids=["its step ends", "it is cancelled"])
async def test_a_message_that_another_has_meanwhile_is_left_to_it(storage: Storage, ends: bool) -> None:
    """Neither deleted nor handed back; the step goes on to its end."""
    real = storage.queue("bulk-cpu")
    others: list[Message | None] = []

    def take(message: Message) -> None:
        real.renew(message, visible_after_s=0)
        others.append(real.receive(visible_after_s=3600))

    steps, queue = Blocking(), Renewing(real, take)
    running = await _held(steps, storage, queue, 1)
    if ends:
        await _stop(running, steps, lambda: steps.ended == 1)
    else:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        steps.let_go.set()
    (other,) = others
    assert other
    assert real.renew(other, visible_after_s=3600)
    assert real.depth() == 1


@pytest.mark.anyio
async def test_a_message_that_was_renewed_goes_back_at_the_end(storage: Storage) -> None:
    """Visible at once, once, and with all its tries."""
    steps, queue = Blocking(), Renewing(storage.queue("bulk-cpu"))
    running = await _held(steps, storage, queue, 2)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    steps.let_go.set()
    message = queue.receive(visible_after_s=3600)
    assert message
    assert (message.body, message.dequeue_count) == (b"x", 1)
    assert queue.depth() == 1


@pytest.mark.anyio
async def test_an_input_is_noticed_once_it_has_stopped_growing(storage: Storage, tmp_path: Path) -> None:
    """Each version once, and sidecars, of which `notice` tells if they are late; a file that is being
    copied is left alone."""
    steps = Steps()
    driver = Driver(steps, storage, "cpu", FAST)  # type: ignore[arg-type]
    storage.source.write("m/a.txt.job.json", b"{}")
    growing = tmp_path / "bulk-in/m/a.txt"
    for size in range(1, 4):
        growing.write_bytes(b"w" * size)
        await driver.look()
    assert [key for key, _ in steps.calls] == ["m/a.txt.job.json"]
    steps.calls.clear()
    await driver.look()
    await driver.look()
    assert [key for key, _ in steps.calls] == ["m/a.txt"]
    growing.write_bytes(b"another version")
    await driver.look()
    await driver.look()
    assert [key for key, _ in steps.calls] == ["m/a.txt", "m/a.txt"]
    assert steps.calls[0] != steps.calls[1]


def test_bulk_files_lie_beside_the_models() -> None:
    """Unless a storage or an account is named."""
    beside = local_storage(Settings(model_store="file:///a/models"))
    assert beside.storage == "file:///a/bulk"
    for named in (
        Settings(storage="azurite"),
        Settings(storage_connection_string="x"),
        Settings(model_store="https://a.blob.core.windows.net/models"),
    ):
        assert local_storage(named) == named
    assert "/a/bulk/bulk-in/MODEL/" in bulk_hint(Settings(model_store="file:///a/models"), [])


def _card(name: str, task: Task) -> ModelCard:
    return ModelCard(name, "r", "cpu-int8", "bert", "mean", 4, 8, task=task)


CARDS = [_card("a", "embedding"), _card("b", "embedding"), _card("ranks", "cross-encoder")]


@pytest.mark.parametrize(
    ("settings", "made"),
    [
        (Settings(model_store="file://{here}/models"), ["bulk/bulk-in/a", "bulk/bulk-in/b"]),
        (
            Settings(model_store="file://{here}/models", storage="file://{here}/x"),
            ["x/bulk-in/a", "x/bulk-in/b"],
        ),
        (Settings(model_store="file://{here}/models", storage="azurite"), []),
        (Settings(model_store="file://{here}/models", storage_connection_string="x"), []),
    ],
    ids=["beside the store", "named", "azurite", "account"],
)
def test_each_embedding_model_has_a_folder_to_drop_files_into(
    tmp_path: Path, settings: Settings, made: list[str]
) -> None:
    """From the start, and again: a copy to a folder that is not there becomes a file of its name."""
    here = replace(
        settings,
        model_store=settings.model_store.format(here=tmp_path),
        storage=settings.storage.format(here=tmp_path),
    )
    for _ in range(2):
        make_inboxes(here, CARDS)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*/*"))
    assert found == made


def test_what_stands_in_the_way_of_such_a_folder_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The service works without it, and the other models have theirs."""
    (tmp_path / "bulk-in").mkdir()
    (tmp_path / "bulk-in" / "a").write_text("a file of that name")
    make_inboxes(Settings(storage=f"file://{tmp_path}"), CARDS)
    assert "bulk-in/a cannot be made: File exists" in caplog.text
    assert (tmp_path / "bulk-in" / "b").is_dir()


class Gate:
    """An input's blobs: what a name beginning with "slow" has behind its head comes when `opened`."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._heads: set[str] = set()
        self.opened = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    def read_range(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        if "slow" in key and key in self._heads:
            self.opened.wait(PATIENCE_S)
        self._heads.add(key)
        return self._blobs.read_range(key, start, length, etag=etag)


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
async def test_a_small_job_ends_while_slow_ones_are_being_read(storage: Storage, ending: str) -> None:
    """As many as there are readers but one; they end, too, once their bytes come."""
    gate = Gate(storage.source)
    storage = replace(storage, source=gate)
    bulk = Bulk(
        storage,
        FakeCatalogue(bulk_cards()),
        fixed(10),
        backend=cast(Backend, FakeEmbedder()),
        devices=("cpu",),
        request_tokens=10_000,
        max_inputs=2048,
        limits=NO_LIMITS,
        default_model="",
    )
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["w1"]}), file)
    slow = [f"mini/slow-{number}.{ending}" for number in range(SPLITS - 1)]
    for key in slow:
        storage.source.write(key, file.getvalue() if ending == "parquet" else _jsonl(["w1"]))
    storage.source.write("mini/small.jsonl", _jsonl(["w1"]))
    for stat in list(storage.source.list("mini/slow")) + list(storage.source.list("mini/small")):
        await bulk.notice(stat.key, stat.etag)

    def there(key: str) -> bool:
        return storage.out.stat(f"{key}.parquet") is not None

    running = asyncio.create_task(Driver(bulk, storage, "cpu", FAST).run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not there("mini/small.jsonl"):  # noqa: ASYNC110 - storage has no events
                await asyncio.sleep(0.01)
            assert not any(map(there, slow))
            gate.opened.set()
            while not all(map(there, slow)):  # noqa: ASYNC110 - storage has no events
                await asyncio.sleep(0.01)
    finally:
        gate.opened.set()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


# --- real services


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"file://{tmp_path_factory.mktemp('models')}"
    publish_all([TINY, SLOW], url)
    return url


class Folder:
    """A bulk storage as its user sees it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ = {"BLITZ_STORAGE": f"file://{root}"}
        self.out = root / "bulk-out"

    def put(self, key: str, data: bytes) -> None:
        """Whole from the first look at it: the time that copying takes is tested elsewhere."""
        path = self.root / "bulk-in" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.root / "whole").write_bytes(data)
        (self.root / "whole").rename(path)

    def statuses(self, source: str) -> list[dict[str, Any]]:
        """Of all jobs of that input."""
        found = [json.loads(path.read_bytes()) for path in self.out.glob("jobs/*/status.json")]
        return [status for status in found if status["source"] == source]

    def wait_ended(self, source: str, count: int = 1) -> list[dict[str, Any]]:
        """Until that many jobs of that input have ended."""
        wait_until(lambda: self.ended(source) == count)
        return self.statuses(source)

    def ended(self, source: str) -> int:
        """How many jobs of that input have ended."""
        return sum("ended_at" in status for status in self.statuses(source))

    @contextmanager
    def paused(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """A process that stands still, at a moment when it does not hold up others."""
        try:
            while not self._stop(process):
                process.send_signal(signal.SIGCONT)
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def _stop(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it has no lock."""
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        self.out.joinpath(".blitz").mkdir(parents=True, exist_ok=True)
        with (self.out / ".blitz" / "lock").open("a") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def check(self, key: str, tiny: Tiny, texts: list[str]) -> str:
        """That the output is right, row by row; its hash."""
        path = self.out / f"{key}.parquet"
        table = pq.read_table(path)
        assert table["id"].to_pylist() == [str(n) for n in range(len(texts))]
        assert nearly(np.stack(table["vector"].to_pylist()), tiny.vectors(texts))
        return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "bulk")


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("service") / "bulk")


@pytest.fixture(scope="module")
def service(models: str, shared_folder: Folder) -> Iterator[subprocess.Popen[bytes]]:
    with started_service(models, environ=shared_folder.environ) as (_, process):
        yield process


def _texts(count: int) -> list[str]:
    return [f"w{n % 97} w{n % 11}" for n in range(count)]


def _jsonl(texts: list[str]) -> bytes:
    return b"".join(
        json.dumps({"id": str(n), "text": text}).encode() + b"\n" for n, text in enumerate(texts)
    )


def test_a_dropped_file_becomes_vectors_and_a_changed_one_again(
    service: subprocess.Popen[bytes], shared_folder: Folder
) -> None:
    """The output is that of the newest version."""
    for number, texts in enumerate((_texts(600), _texts(40)), 1):
        shared_folder.put("tiny/x.jsonl", _jsonl(texts))
        statuses = shared_folder.wait_ended("tiny/x.jsonl", number)
        assert {status["status"] for status in statuses} == {"completed"}
        shared_folder.check("tiny/x.jsonl", TINY, texts)


def test_a_bad_file_is_a_failed_job_and_the_service_lives_on(
    service: subprocess.Popen[bytes], shared_folder: Folder
) -> None:
    """No such model, no such format: each says why, and the next file is embedded."""
    shared_folder.put("nobody/x.txt", b"w1\n")
    shared_folder.put("tiny/array.jsonl", b'[{"text": "w1"}]')
    shared_folder.put("tiny/good.jsonl", _jsonl(["w1"]))
    for source in ("nobody/x.txt", "tiny/array.jsonl"):
        (status,) = shared_folder.wait_ended(source)
        assert status["status"] == "failed"
        assert status["error"]
    shared_folder.wait_ended("tiny/good.jsonl")
    shared_folder.check("tiny/good.jsonl", TINY, ["w1"])
    assert service.poll() is None


def test_a_stop_in_the_middle_of_a_job_loses_nothing(models: str, folder: Folder) -> None:
    """SIGTERM is obeyed soon, with work under way; the next start ends the job at once."""
    for count in (2_500, 10_000, 40_000):  # until the stop comes before the end
        texts = [f"w{n % 97} " + "w1 " * 20 for n in range(count)]
        key = f"slow/{count}.jsonl"
        folder.put(key, _jsonl(texts))
        with started_service(models, environ=folder.environ) as (_, process):
            wait_until(lambda: [*folder.out.glob("jobs/*/parts/*.arrow")] or folder.ended(key))  # noqa: B023
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        if not folder.ended(key):
            break
    assert not (folder.out / f"{key}.parquet").exists()
    with started_service(models, environ=folder.environ):
        (status,) = folder.wait_ended(key)
    assert status["status"] == "completed"
    folder.check(key, SLOW, texts)


def test_two_services_share_the_work_and_give_the_same_bytes(models: str, tmp_path: Path) -> None:
    """One storage, two processes with models of their own; as one process alone.

    The second splits, while the first stands still, and then the first embeds what is left.
    """
    texts = [f"w{n % 97} " + "w1 " * 20 for n in range(4000)]
    alone, together = Folder(tmp_path / "alone"), Folder(tmp_path / "together")
    environ = {"BLITZ_THREADS": "1"}
    with started_service(models, environ=alone.environ | environ):
        alone.put("slow/x.jsonl", _jsonl(texts))
        alone.wait_ended("slow/x.jsonl")
    with (
        started_service(models, environ=together.environ | environ) as (url, first),
        started_service(models, environ=together.environ | environ) as (other_url, second),
    ):
        wait_until_ready(url, first)
        wait_until_ready(other_url, second)
        with ExitStack() as splitting:
            splitting.enter_context(together.paused(first))
            together.put("slow/x.jsonl", _jsonl(texts))
            wait_until(lambda: [*together.out.glob("jobs/*/split.json")])
            with together.paused(second):
                splitting.close()
                wait_until(lambda: metrics_of(url)[EMBEDDED])
        together.wait_ended("slow/x.jsonl")
        wait_until(lambda: metrics_of(url)[EMBEDDED] + metrics_of(other_url)[EMBEDDED] == len(texts))
    assert together.check("slow/x.jsonl", SLOW, texts) == alone.check("slow/x.jsonl", SLOW, texts)


def test_each_backend_of_a_separate_service_drives_its_queue(models: str, folder: Folder) -> None:
    """The router none: the CPU backend splits and finishes."""
    port = free_port(3)
    with started_service(models, "--separate", environ=folder.environ, port=port) as (url, process):
        wait_until_ready(url, process)
        folder.put("tiny/x.jsonl", _jsonl(["w1", "w2"]))
        (status,) = folder.wait_ended("tiny/x.jsonl")
    assert status["status"] == "completed"
    folder.check("tiny/x.jsonl", TINY, ["w1", "w2"])


def test_the_mark_of_a_version_names_its_job(
    service: subprocess.Popen[bytes], shared_folder: Folder
) -> None:
    """Whoever knows key and ETag finds the status."""
    shared_folder.put("tiny/marked.txt", b"w1\n")
    (status,) = shared_folder.wait_ended("tiny/marked.txt")
    stat = open_storage(Settings(storage=f"file://{shared_folder.root}")).source.stat("tiny/marked.txt")
    assert stat
    mark = shared_folder.out / event_key("source", stat.key, stat.etag)
    assert mark.read_text() == status["id"]
