"""Contract tests of shared.storage.blobs, over a real folder and a real Azurite."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from stat import S_IFCHR
from typing import IO

import pytest
from azure.storage.blob import BlobServiceClient, ContainerClient
from azure.storage.queue import QueueServiceClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import InvalidInput, Misconfigured, SourceChanged, StoreUnavailable
from shared.settings import Settings
from shared.storage import azure_blobs, finished_file, shown_names
from shared.storage.azure_blobs import AzureBlobs
from shared.storage.azure_queue import AzureQueue
from shared.storage.blobs import OUT, SOURCE, Blobs, Message, Queue, Storage
from shared.storage.connect import open_storage
from shared.storage.folder import FolderBlobs
from tests.azurite import Azurite, running_azurite
from tests.patience import PATIENCE_S
from tests.server import ROOT, free_port

BIG = 9 << 20  # more than two blocks
THREADS = 8
ONE_FOR_ALL_EXAMPLES = settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
BAD_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../out",
    "a/../../b",
    "a/..",
    ".",
    "a/./b",
    "a//b",
    "a/",
    "a\0b",
    "a\nb",
    "a\\b",
    "..\\b",
    "\ud800",
    "x" * 1025,
    ".blitz/lock",
]
ODD_KEYS = [
    "a b.txt",
    "é/ü 日本.txt",
    "a%20b",
    "%2e%2e/x",
    "a+b?c=d#e&f",
    "a:b|c*<>\"'",
    "...",
    "-rf",
    "~",
    "x.blitz/y",
    "a/" * 100 + "b",
]


@dataclass(frozen=True)
class Place:
    """A storage that is empty at first. Opened again, it is what another process has."""

    kind: str
    settings: Settings

    def open(self) -> Storage:
        return open_storage(self.settings)

    @property
    def environ(self) -> dict[str, str]:
        connection_string = self.settings.storage_connection_string
        named = {"STORAGE": self.settings.storage, "STORAGE_CONNECTION_STRING": connection_string}
        return {**os.environ, **{f"BLITZ_{name}": value for name, value in named.items() if value}}


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    with running_azurite(queues=True) as azurite:
        yield azurite


@pytest.fixture
def azure_place(azurite: Azurite) -> Iterator[Place]:
    yield Place("azure", Settings(storage_connection_string=azurite.connection_string))
    with BlobServiceClient.from_connection_string(azurite.connection_string) as blobs:
        for container in blobs.list_containers():
            blobs.delete_container(container)
    with QueueServiceClient.from_connection_string(azurite.connection_string) as queues:
        for queue in queues.list_queues():
            queues.delete_queue(queue)


@pytest.fixture
def folder_place(tmp_path: Path) -> Place:
    return Place("folder", Settings(storage=f"file://{tmp_path / 'bulk'}"))


@pytest.fixture(params=["folder", "azure"])
def place(request: pytest.FixtureRequest) -> Place:
    place: Place = request.getfixturevalue(f"{request.param}_place")
    return place


@pytest.fixture
def storage(place: Place) -> Storage:
    return place.open()


@pytest.fixture
def blobs(storage: Storage) -> Blobs:
    return storage.out


def etag_of(blobs: Blobs, key: str) -> str:
    stat = blobs.stat(key)
    assert stat is not None
    return stat.etag


def in_threads(work: Callable[[int], object], number: int = THREADS) -> list[object]:
    """What each of `number` threads returns; all begin at once."""
    all_there = threading.Barrier(number)

    def begin(index: int) -> object:
        all_there.wait(PATIENCE_S)
        return work(index)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(begin, range(number)))


def received(queue: Queue, visible_after_s: float = 60, timeout_s: float = PATIENCE_S) -> Message:
    """The next message, waited for."""
    deadline = time.monotonic() + timeout_s
    while (message := queue.receive(visible_after_s=visible_after_s)) is None:
        assert time.monotonic() < deadline, "no message became visible"
        time.sleep(0.02)
    return message


# Blobs


@pytest.mark.parametrize("size", [0, 1, 4 << 20, (4 << 20) + 1, BIG])
@pytest.mark.parametrize("from_file", [False, True])
def test_every_way_of_writing_stores_the_bytes(
    blobs: Blobs, tmp_path: Path, size: int, from_file: bool
) -> None:
    """From memory or a file, in one request or in blocks: what is read is what was written."""
    versions = [os.urandom(size) for _ in range(3)]
    data: list[bytes | Path] = []
    for number, version in enumerate(versions):
        path = tmp_path / f"data{number}"
        path.write_bytes(version)
        data.append(path if from_file else version)
    assert blobs.create("k", data[0])
    assert blobs.read("k") == versions[0]
    blobs.write("k", data[1])
    assert blobs.read("k") == versions[1]
    assert blobs.replace("k", data[2], etag=etag_of(blobs, "k"))
    assert blobs.read("k") == versions[2]
    stat = blobs.stat("k")
    assert stat is not None
    assert (stat.key, stat.size, stat.metadata) == ("k", size, {})
    assert abs(stat.modified_s - time.time()) < 60


def test_what_is_not_there(storage: Storage) -> None:
    """Before anything was written, without container or queue, nothing is found and nothing fails."""
    for blobs in (storage.source, storage.out):
        assert blobs.stat("k") is None
        assert blobs.read("k") is None
        assert list(blobs.list("")) == []
        assert not blobs.replace("k", b"new", etag="0x1")
        blobs.delete("k")
        with pytest.raises(SourceChanged):
            blobs.read_range("k", 0, 1, etag="0x1")
        assert blobs.stat("k") is None
    queue = storage.queue("bulk-cpu")
    assert queue.receive(visible_after_s=1) is None
    assert queue.depth() == 0


def test_containers_and_queues_are_apart(storage: Storage) -> None:
    """Input and output, and two queues, do not see each other's."""
    storage.source.write("k", b"in")
    assert storage.out.read("k") is None
    storage.queue("bulk-cpu").send(b"m")
    assert storage.queue("bulk-gpu").receive(visible_after_s=1) is None
    assert storage.queue("bulk-cpu").depth() == 1


def test_an_etag_names_one_version(blobs: Blobs) -> None:
    """Every write gives another, of the same bytes too; looking and listing agree on it."""
    seen = set()
    writes: list[Callable[[], object]] = [
        lambda: blobs.create("k", b"same"),
        *[lambda: blobs.write("k", b"same")] * 20,
        lambda: blobs.write_stream("k", [b"same"]),
        lambda: blobs.replace("k", b"same", etag=etag_of(blobs, "k")),
        lambda: blobs.delete("k"),
        lambda: blobs.create("k", b"same"),
    ]
    for write in writes:
        write()
        [*listed] = blobs.list("k")
        stat = blobs.stat("k")
        if stat is not None:
            assert listed == [stat]
            assert stat.etag not in seen
            assert '"' not in stat.etag
            seen.add(stat.etag)
    assert len(seen) == 24


def test_one_of_many_creates(place: Place) -> None:
    """Threads, each with a storage of its own, create the same keys: each key has exactly one winner."""
    storages = [place.open() for _ in range(THREADS)]
    keys = [f"jobs/{number}/part" for number in range(10)]

    def create_all(index: int) -> list[bool]:
        return [storages[index].out.create(key, str(index).encode()) for key in keys]

    results = [row for row in in_threads(create_all) if isinstance(row, list)]
    for number, key in enumerate(keys):
        winners = [index for index, row in enumerate(results) if row[number]]
        assert [str(winner).encode() for winner in winners] == [storages[0].out.read(key)]


CREATE_ALL = """
import os, sys
from shared.storage.connect import open_storage
from shared.settings import Settings
storage = open_storage(Settings.from_env(os.environ))
print("ready", flush=True)
sys.stdin.readline()
mine = sys.argv[1].encode() * 100_000
print(*[int(storage.out.create(f"k{number}", mine)) for number in range(30)])
"""


def test_one_of_many_processes_creates(place: Place) -> None:
    """The same across processes, which have no lock in common, with blobs that take time to write."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE_ALL, name],
            cwd=ROOT,
            env=place.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abc"
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    rows = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        rows.append([int(won) for won in process.communicate(timeout=PATIENCE_S)[0].split()])
        assert process.returncode == 0
    out = place.open().out
    for number, wins in enumerate(zip(*rows, strict=True)):
        assert sum(wins) == 1
        assert out.read(f"k{number}") == b"abc"[wins.index(1) : wins.index(1) + 1] * 100_000
    assert len(list(out.list(""))) == 30


def test_replacing_loses_no_update(place: Place) -> None:
    """Threads that count in one blob: every True is in the sum, and every False left it alone."""
    place.open().out.create("count", b"0")

    def count(_: int) -> int:
        out, added = place.open().out, 0
        while added < 5:
            etag, data = etag_of(out, "count"), out.read("count")
            assert data is not None
            added += out.replace("count", str(int(data) + 1).encode(), etag=etag)
        return added

    in_threads(count)
    assert place.open().out.read("count") == str(5 * THREADS).encode()


def test_replacing_another_version_changes_nothing(blobs: Blobs) -> None:
    """A stale ETag, and one of a blob that is gone, are refused."""
    blobs.write("k", b"old", {"a": "1"})
    stale = etag_of(blobs, "k")
    blobs.write("k", b"new", {"a": "2"})
    current = blobs.stat("k")
    assert not blobs.replace("k", b"lost", etag=stale)
    assert not blobs.replace("k", os.urandom(BIG), etag=stale)
    assert blobs.read("k") == b"new"
    assert blobs.stat("k") == current
    assert current is not None
    blobs.delete("k")
    assert not blobs.replace("k", b"lost", etag=current.etag)
    assert blobs.read("k") is None


def test_ranges_are_slices(blobs: Blobs) -> None:
    """Within, across the end, at it and beyond it; of an empty blob too."""
    data = os.urandom(10)
    for content in (data, b""):
        blobs.write("k", content)
        etag = etag_of(blobs, "k")
        for start, length in itertools.product((0, 1, 9, 10, 11, 99), (1, 5, 10, 99)):
            found = blobs.read_range("k", start, length, etag=etag)
            assert found == content[start : start + length]


def test_a_long_range_comes_whole(blobs: Blobs) -> None:
    """A range larger than a block of the service."""
    data = os.urandom(BIG)
    blobs.write("k", data)
    assert blobs.read_range("k", 3, BIG - 5, etag=etag_of(blobs, "k")) == data[3:-2]


@pytest.mark.parametrize("start", [0, 2, 5, 99])
def test_a_range_of_a_changed_blob_is_refused(blobs: Blobs, start: int) -> None:
    """Bytes of two versions never get into one job: overwritten, or deleted, it is SourceChanged."""
    blobs.write("k", b"first")
    etag = etag_of(blobs, "k")
    blobs.write("k", b"other")
    with pytest.raises(SourceChanged):
        blobs.read_range("k", start, 2, etag=etag)
    blobs.delete("k")
    with pytest.raises(SourceChanged):
        blobs.read_range("k", start, 2, etag=etag)


@ONE_FOR_ALL_EXAMPLES
@given(blocks=st.lists(st.binary(max_size=40), max_size=12))
def test_a_stream_is_its_blocks_in_a_row(blobs: Blobs, blocks: list[bytes]) -> None:
    """However it is cut: empty ones, larger and smaller ones than are stored, none at all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(azure_blobs, "BLOCK_BYTES", 16)
        blobs.write_stream("k", iter(blocks))
    assert blobs.read("k") == b"".join(blocks)


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("breaks", [False, True])
def test_a_stream_is_seen_when_it_is_complete(blobs: Blobs, before: bytes | None, breaks: bool) -> None:
    """Until its last chunk readers see what was there; if a chunk fails they go on seeing that."""
    if before is not None:
        blobs.write("k", before, {"a": "old"})
    stat = blobs.stat("k")

    def unchanged() -> bool:
        return (blobs.read("k"), blobs.stat("k"), list(blobs.list(""))) == (
            before,
            stat,
            [stat] * (stat is not None),
        )

    def blocks() -> Iterator[bytes]:
        for number in range(3):
            yield bytes([number]) * (4 << 20)
            assert unchanged()
        if breaks:
            raise ZeroDivisionError

    if breaks:
        with pytest.raises(ZeroDivisionError):
            blobs.write_stream("k", blocks(), {"a": "new"})
        assert unchanged()
    else:
        blobs.write_stream("k", blocks(), {"a": "new"})
        assert blobs.read("k") == b"".join(bytes([number]) * (4 << 20) for number in range(3))
        [listed] = blobs.list("")
        assert listed.metadata == {"a": "new"}


@pytest.mark.parametrize("same", [False, True])
def test_two_streams_at_once_never_mix(blobs: Blobs, same: bool) -> None:
    """The blob is one of them whole. One may be told to try again, unless both write the same."""
    texts = [b"a" * BIG, b"a" * BIG if same else b"b" * BIG]
    step = threading.Barrier(2)

    def write(index: int) -> object:
        def blocks() -> Iterator[bytes]:
            for start in range(0, BIG, 3 << 20):
                step.wait(PATIENCE_S)
                yield texts[index][start : start + (3 << 20)]

        try:
            blobs.write_stream("k", blocks())
        except StoreUnavailable:
            return False
        return True

    succeeded = in_threads(write, 2)
    assert any(succeeded)
    assert all(succeeded) or not same
    data = blobs.read("k")
    assert data in texts
    assert succeeded[texts.index(data)]


def test_metadata_belongs_to_its_version(blobs: Blobs) -> None:
    """It comes with the blob, in lists too, and the next write takes it away."""
    metadata = {"blitz_model": "all-MiniLM-L6-v2", "blitz_dimensions": "128", "_x": "a b=c;\"d'"}
    writes: list[Callable[[], object]] = [
        lambda: blobs.write("a/k", b"1", metadata),
        lambda: blobs.write_stream("a/k", [b"1"], metadata),
        lambda: blobs.write("a/k", os.urandom(BIG), metadata),
    ]
    for write in writes:
        write()
        stat = blobs.stat("a/k")
        assert stat is not None
        assert stat.metadata == metadata
        assert list(blobs.list("a/")) == [stat]
    blobs.write("a/k", b"2")
    [listed] = blobs.list("")
    assert listed.metadata == {}


@pytest.mark.parametrize(
    "metadata",
    [
        {"Upper": "x"},
        {"a-b": "x"},
        {"": "x"},
        {"1a": "x"},
        {"a": "é"},
        {"a": "x\n"},
        {"a": " x"},
        {"a": ""},
        {"a": "x" * 8192},
        {f"a{n:04}": "xxx" for n in range(1025)},
    ],
)
def test_metadata_that_a_header_cannot_carry_is_refused(blobs: Blobs, metadata: dict[str, str]) -> None:
    """Before anything is written, and the same everywhere."""
    writes: list[Callable[[], object]] = [
        lambda: blobs.write("k", b"1", metadata),
        lambda: blobs.write_stream("k", [b"1"], metadata),
        lambda: blobs.write_stream("k", [b"1"], lambda: metadata),
    ]
    for write in writes:
        with pytest.raises(InvalidInput, match="metadata"):
            write()
    assert blobs.read("k") is None


def test_metadata_may_be_as_much_as_azure_takes(blobs: Blobs) -> None:
    """8 KiB, names included."""
    metadata = {f"a{n}": "x" * 1022 for n in range(8)}
    blobs.write("k", b"1", metadata)
    stat = blobs.stat("k")
    assert stat is not None
    assert stat.metadata == metadata


@pytest.mark.parametrize("size", [1, BIG])
def test_metadata_may_be_known_with_the_last_byte(blobs: Blobs, size: int) -> None:
    """It is asked for once all has come; if that fails, nothing has changed."""
    known: dict[str, str] = {}

    def blocks() -> Iterator[bytes]:
        yield b"x" * size
        known["a"] = "b"

    def fail() -> dict[str, str]:
        raise ZeroDivisionError

    blobs.write_stream("k", blocks(), lambda: known)
    with pytest.raises(ZeroDivisionError):
        blobs.write_stream("k", [b"new"], fail)
    stat = blobs.stat("k")
    assert stat is not None
    assert (stat.size, stat.metadata) == (size, {"a": "b"})


def test_a_list_holds_what_begins_with_the_prefix(blobs: Blobs) -> None:
    """The prefix is one of characters, not of folders; the order is that of the keys."""
    keys = ["a", "b/1", "b/10", "b/2", "b/c/d", "ba", "z/y/x"]
    for key in reversed(keys):
        blobs.write(key, key.encode())
    for prefix in (
        "",
        "a",
        "b",
        "b/",
        "b/1",
        "b/c",
        "b/c/",
        "b/c/d",
        "c",
        "z/y/",
        "x/y",
        "/",
        "..",
        "b//",
    ):
        assert [stat.key for stat in blobs.list(prefix)] == [
            key for key in keys if key.startswith(prefix)
        ]
    blobs.delete("b/10")
    assert [stat.key for stat in blobs.list("b/1")] == ["b/1"]


def test_a_list_goes_on_after_its_first_page(
    storage: Storage, azure_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure answers 5,000 at a time; two at a time here."""
    monkeypatch.setattr(
        ContainerClient, "list_blobs", partialmethod(ContainerClient.list_blobs, results_per_page=2)
    )
    out = azure_place.open().out
    for number in range(5):
        out.write(f"k{number}", b"")
    assert [stat.key for stat in out.list("")] == [f"k{number}" for number in range(5)]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_are_only_names(blobs: Blobs, key: str) -> None:
    """Spaces, per cent signs, other alphabets and shell characters come back as they were."""
    assert blobs.create(key, b"1")
    blobs.write(key, b"2", {"a": "b"})
    assert [stat.key for stat in blobs.list("")] == [key]
    assert [*blobs.list(key)] == [blobs.stat(key)]
    assert blobs.read_range(key, 0, 1, etag=etag_of(blobs, key)) == b"2"
    blobs.delete(key)
    assert blobs.read(key) is None


@pytest.mark.parametrize("key", BAD_KEYS)
def test_keys_that_could_leave_the_storage_are_refused(blobs: Blobs, key: str) -> None:
    """By every method, before anything is touched."""
    calls: list[Callable[[], object]] = [
        lambda: blobs.stat(key),
        lambda: blobs.read(key),
        lambda: blobs.read_range(key, 0, 1, etag="0x1"),
        lambda: blobs.create(key, b""),
        lambda: blobs.write(key, b""),
        lambda: blobs.replace(key, b"", etag="0x1"),
        lambda: blobs.write_stream(key, []),
        lambda: blobs.delete(key),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match="name"):
            call()


# Queues


@pytest.mark.parametrize("body", [b"{}", '{"é": "日本"}'.encode(), bytes(range(256)), b"x" * 48 * 1024])
def test_a_message_arrives_and_is_done_with(storage: Storage, body: bytes) -> None:
    """Sent, received once, hidden from then on, counted until it is deleted."""
    queue = storage.queue("bulk-cpu")
    queue.send(body)
    assert queue.depth() == 1
    message = queue.receive(visible_after_s=60)
    assert message is not None
    assert (message.body, message.dequeue_count) == (body, 1)
    assert queue.receive(visible_after_s=60) is None
    assert queue.depth() == 1
    queue.delete(message)
    assert queue.depth() == 0
    queue.delete(message)


def test_no_two_consumers_get_the_same_message(place: Place) -> None:
    """While it is hidden: threads with storages of their own work off a queue, each message once."""
    sender = place.open().queue("bulk-cpu")
    bodies = {f"m{number}".encode() for number in range(40)}
    for body in bodies:
        sender.send(body)

    def consume(_: int) -> list[Message]:
        queue, messages = place.open().queue("bulk-cpu"), []
        while (message := queue.receive(visible_after_s=300)) is not None:
            messages.append(message)
        return messages

    rows = [row for row in in_threads(consume) if isinstance(row, list)]
    messages = list(itertools.chain.from_iterable(rows))
    assert sorted(message.body for message in messages) == sorted(bodies)
    assert {message.dequeue_count for message in messages} == {1}
    assert len({message.id for message in messages}) == len(bodies)


def test_a_message_that_is_not_deleted_comes_back(storage: Storage) -> None:
    """With a higher count each time, and only the last who received it can delete it."""
    queue = storage.queue("bulk-cpu")
    queue.send(b"m")
    messages = [received(queue, visible_after_s=0.1) for _ in range(3)]
    assert [message.dequeue_count for message in messages] == [1, 2, 3]
    assert len({message.id for message in messages}) == 1
    last = received(queue, visible_after_s=60)
    assert last.dequeue_count == 4
    for message in messages:
        queue.delete(message)
    assert queue.depth() == 1
    queue.delete(last)
    assert queue.depth() == 0


def test_a_message_that_is_renewed_stays_hidden(storage: Storage) -> None:
    """Longer than it was received for, with its body and count; only the newest receipt serves."""
    queue = storage.queue("bulk-cpu")
    body = bytes(range(256))
    queue.send(body)
    first = received(queue, visible_after_s=1)
    second = queue.renew(first, visible_after_s=60)
    assert second is not None
    assert (second.id, second.body, second.dequeue_count) == (first.id, body, 1)
    time.sleep(1.2)
    assert queue.receive(visible_after_s=60) is None
    assert queue.renew(first, visible_after_s=60) is None
    queue.delete(first)
    assert queue.depth() == 1
    third = queue.renew(second, visible_after_s=60)
    assert third is not None
    queue.delete(third)
    assert queue.depth() == 0


def test_a_message_that_another_has_is_not_renewed(storage: Storage) -> None:
    """The other keeps it; nor is one that was deleted. One that nobody has taken yet can be renewed."""
    queue = storage.queue("bulk-cpu")
    queue.send(b"m")
    late = received(queue, visible_after_s=1)
    time.sleep(1.2)
    kept = queue.renew(late, visible_after_s=1)
    assert kept is not None
    other = received(queue, visible_after_s=60)
    assert other.dequeue_count == 2
    assert queue.renew(kept, visible_after_s=0) is None
    assert queue.receive(visible_after_s=60) is None
    queue.delete(other)
    assert queue.renew(other, visible_after_s=60) is None
    assert queue.depth() == 0


def test_a_message_renewed_for_no_time_is_visible_at_once(storage: Storage) -> None:
    """Before the time that it was received for is over; it comes with its body."""
    queue = storage.queue("bulk-cpu")
    queue.send(b"m")
    message = received(queue, visible_after_s=3600)
    assert queue.renew(message, visible_after_s=0) is not None
    again = received(queue)
    assert (again.body, again.dequeue_count) == (b"m", 2)


# A folder


def test_what_people_drop_and_take_are_plain_files(folder_place: Place, tmp_path: Path) -> None:
    """A file that is copied in is a blob; a blob is a file that can be read with other tools."""
    source, root = folder_place.open().source, tmp_path / "bulk"
    assert list(source.list("")) == []
    (root / "bulk-in" / "m").mkdir()
    (root / "bulk-in" / "m" / "x.txt").write_bytes(b"text")
    (root / "bulk-in" / "m" / os.fsdecode(b"\xff")).write_bytes(b"not a name")
    os.mkfifo(root / "bulk-in" / "m" / "fifo")
    [stat] = source.list("")
    assert (stat.key, stat.size) == ("m/x.txt", 4)
    folder_place.open().out.write("m/x.parquet", b"vectors")
    assert (root / "bulk-out" / "m" / "x.parquet").read_bytes() == b"vectors"
    assert (root / "bulk-out" / "m" / "x.parquet").stat().st_mode & 0o777 == 0o644


def _link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def _fifo(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, secret: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)  # a socket's path has at most 107 bytes


def _device(path: Path, secret: Path) -> None:
    try:
        os.mknod(path, 0o666 | S_IFCHR, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root can make a device")


IRREGULAR: dict[str, Callable[[Path, Path], None]] = {
    "a link": _link,
    "a link to nothing": lambda path, secret: path.symlink_to("/nowhere"),
    "a link to a device": lambda path, secret: path.symlink_to("/dev/zero"),
    "a FIFO": _fifo,
    "a socket": _socket,
    "a device": _device,
}


@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_no_regular_file_is_no_blob(
    kind: str, folder_place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither listed nor read, and never waited for; one line says that it is passed over."""
    storage = folder_place.open()
    storage.source.write("m/good.txt", b"x")
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    IRREGULAR[kind](tmp_path / "bulk/bulk-in/m/bad\x1b[2J.txt", secret)
    IRREGULAR[kind](tmp_path / "bulk/bulk-in/m/bad.txt", secret)
    for _ in range(2):
        assert [stat.key for stat in storage.source.list("")] == ["m/good.txt"]
    assert storage.source.stat("m/bad.txt") is None
    assert storage.source.read("m/bad.txt") is None
    with pytest.raises(SourceChanged):
        storage.source.read_range("m/bad.txt", 0, 10, etag="")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert any('"m/bad.txt"' in line for line in told)
    assert all(line.isprintable() for line in told)


def test_a_link_to_a_folder_is_not_followed(
    folder_place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not to read what lies there, nor to write or delete there."""
    storage = folder_place.open()
    secrets = tmp_path / "secrets"
    (secrets / "deep").mkdir(parents=True)
    (secrets / "deep/a.txt").write_bytes(b"secret")
    for blobs, name in ((storage.source, "bulk-in"), (storage.out, "bulk-out")):
        blobs.write("good.txt", b"x")
        (tmp_path / "bulk" / name / "m").symlink_to(secrets)
        assert [stat.key for stat in blobs.list("")] == ["good.txt"]
        assert list(blobs.list("m/")) == []
        assert list(blobs.list("m/deep/a")) == []
        assert blobs.stat("m/deep/a.txt") is None
        assert blobs.read("m/deep/a.txt") is None
        for write in (blobs.write, blobs.create):
            with pytest.raises(InvalidInput):
                write("m/deep/new.txt", b"y")
        blobs.delete("m/deep/a.txt")
    assert [path.name for path in secrets.rglob("*")] == ["deep", "a.txt"]
    assert sum('"m"' in record.getMessage() for record in caplog.records) == 2


def test_the_service_s_own_folders_are_no_way_out_either(folder_place: Place, tmp_path: Path) -> None:
    """Old files in them are swept, and metadata of older versions deleted."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "old").write_bytes(b"x")
    os.utime(secrets / "old", (0, 0))
    own = tmp_path / "bulk/bulk-in/.blitz"
    own.parent.mkdir(parents=True)
    own.symlink_to(secrets)
    (secrets / "partial").mkdir()
    (secrets / "partial/old").write_bytes(b"x")
    os.utime(secrets / "partial/old", (0, 0))
    with pytest.raises((InvalidInput, StoreUnavailable)):
        folder_place.open().source.write("a.txt", b"y", {"n": "1"})
    assert sorted(path.name for path in secrets.rglob("*")) == ["old", "old", "partial"]


@pytest.mark.parametrize("kind", IRREGULAR)
def test_a_file_that_is_exchanged_after_a_look_is_not_read(
    kind: str, folder_place: Place, tmp_path: Path
) -> None:
    """What was opened is what counts, not what was there when it was listed."""
    storage = folder_place.open()
    storage.source.write("m/a.txt", b"x")
    stat = storage.source.stat("m/a.txt")
    assert stat
    path = tmp_path / "bulk/bulk-in/m/a.txt"
    path.unlink()
    IRREGULAR[kind](path, Path("/etc/passwd"))
    with pytest.raises(SourceChanged):
        storage.source.read_range("m/a.txt", 0, 10, etag=stat.etag)


def test_a_hard_link_is_a_file(folder_place: Place, tmp_path: Path) -> None:
    """Who can make one could read what it names."""
    storage = folder_place.open()
    storage.source.write("a.txt", b"x")
    os.link(tmp_path / "bulk/bulk-in/a.txt", tmp_path / "bulk/bulk-in/b.txt")
    assert [stat.key for stat in storage.source.list("")] == ["a.txt", "b.txt"]
    assert storage.source.read("b.txt") == b"x"


def test_the_storage_itself_may_be_a_link(folder_place: Place, tmp_path: Path) -> None:
    """That is the operator's, who may have put it on a larger disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "bulk").symlink_to(tmp_path / "disk")
    storage = folder_place.open()
    storage.source.write("m/a.txt", b"x")
    assert [stat.key for stat in storage.source.list("")] == ["m/a.txt"]
    assert (tmp_path / "disk/bulk-in/m/a.txt").read_bytes() == b"x"


def test_a_file_that_grows_in_place_is_another_version(folder_place: Place, tmp_path: Path) -> None:
    """Copying takes time: the driver sees it by the ETag, and a reader of the first half is told."""
    source, path = folder_place.open().source, tmp_path / "bulk" / "bulk-in" / "x.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    etag = etag_of(source, "x.txt")
    with path.open("ab") as stream:
        stream.write(b" and half")
    assert etag_of(source, "x.txt") != etag
    with pytest.raises(SourceChanged):
        source.read_range("x.txt", 0, 4, etag=etag)


def test_a_file_that_is_moved_in_with_its_time_is_another_version(
    folder_place: Place, tmp_path: Path
) -> None:
    """mv and cp -p keep the time of writing, and the size may be the same."""
    source, path = folder_place.open().source, tmp_path / "bulk" / "bulk-in" / "x.txt"
    source.write("x.txt", b"one")
    etag, times = etag_of(source, "x.txt"), path.stat()
    (tmp_path / "other").write_bytes(b"two")
    os.utime(tmp_path / "other", ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "other").rename(path)
    assert etag_of(source, "x.txt") != etag


def test_of_two_that_replace_the_second_waits_for_the_first(
    folder_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look at the ETag and its rename, nobody else of any process gets in."""
    out = folder_place.open().out
    out.write("k", b"old")
    etag = etag_of(out, "k")
    looked, go_on, came = threading.Event(), threading.Event(), threading.Semaphore(0)
    lock = fcntl.flock

    def linger(*_: object) -> None:
        if not looked.is_set():
            looked.set()
            go_on.wait(PATIENCE_S)

    def tell_and_lock(stream: IO[str], operation: int) -> None:
        came.release()
        lock(stream, operation)

    monkeypatch.setattr(FolderBlobs, "_add_metadata", linger)
    monkeypatch.setattr(fcntl, "flock", tell_and_lock)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(out.replace, "k", b"first", etag=etag)
        assert looked.wait(PATIENCE_S)
        assert came.acquire(timeout=PATIENCE_S)
        second = pool.submit(folder_place.open().out.replace, "k", b"second", etag=etag)
        assert came.acquire(timeout=PATIENCE_S)
        wait([second], timeout=0.2)  # if it did not wait now, it would be done
        go_on.set()
        assert (first.result(PATIENCE_S), second.result(PATIENCE_S)) == (True, False)
    assert out.read("k") == b"first"


def test_a_look_while_another_writes_has_metadata_of_its_version(
    folder_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old version and its metadata may go between the two looks."""
    out, read_metadata = folder_place.open().out, FolderBlobs._metadata
    out.write("k", b"old", {"a": "old"})

    def read_late(self: FolderBlobs, key: str, etag: str) -> dict[str, str]:
        monkeypatch.setattr(FolderBlobs, "_metadata", read_metadata)
        out.write("k", b"newer", {"a": "newer"})
        return read_metadata(self, key, etag)

    monkeypatch.setattr(FolderBlobs, "_metadata", read_late)
    stat = out.stat("k")
    assert stat is not None
    assert (stat.size, stat.metadata) == (5, {"a": "newer"})


def test_the_time_of_writing_is_told_to_the_nanosecond(
    folder_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own stands still for milliseconds, and inodes are used again: two would be one."""
    times_ns = [1_700_000_000_000_000_001, 1_700_000_000_000_000_002]
    monkeypatch.setattr(time, "time_ns", iter(times_ns).__next__)
    out, path = folder_place.open().out, tmp_path / "bulk" / "bulk-out" / "k"
    for time_ns in times_ns:
        out.write("k", b"same")
        assert path.stat().st_mtime_ns == time_ns


def test_names_that_a_folder_cannot_hold_are_the_callers(folder_place: Place) -> None:
    """A file where a folder is, a folder where a file is, a part that is too long: InvalidInput."""
    out = folder_place.open().out
    out.write("a", b"file")
    out.write("b/c", b"file")
    calls: list[Callable[[str], object]] = [
        lambda key: out.write(key, b""),
        lambda key: out.create(key, b""),
        lambda key: out.write_stream(key, [b""]),
    ]
    for key, call in itertools.product(("a/x", "a/x/y", "b", "x" * 256), calls):
        with pytest.raises(InvalidInput, match="folder"):
            call(key)
    for key in ("a/x", "b"):
        assert out.stat(key) is None
        assert out.read(key) is None
        out.delete(key)
    assert [stat.key for stat in out.list("")] == ["a", "b/c"]


def test_a_folder_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    """An operating system's error becomes ours, without its path."""
    (tmp_path / "bulk").write_bytes(b"a file")
    storage = open_storage(Settings(storage=f"file://{tmp_path / 'bulk'}"))
    calls: list[Callable[[], object]] = [
        lambda: storage.out.create("k", b""),
        lambda: storage.out.write("k", b""),
        lambda: list(storage.out.list("")),
        lambda: storage.queue("q").send(b""),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="bulk storage") as caught:
            call()
        assert str(tmp_path) not in str(caught.value)


def test_killed_at_any_line_a_folder_holds_the_old_or_the_new(tmp_path: Path) -> None:
    """SIGKILL at every line of each operation: blobs keep their metadata, no message is lost or torn."""
    command = [sys.executable, "-m", "tests.shared.bulk.killed", str(tmp_path / "bulk")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    kills = [int(count) for count in done.stdout.split()]
    assert len(kills) == 9
    assert min(kills) > 10


SEND = """
import itertools, os, sys
from shared.storage.connect import open_storage
from shared.settings import Settings
queue = open_storage(Settings.from_env(os.environ)).queue("bulk-cpu")
for number in itertools.count(int(sys.argv[1])):
    queue.send(b"%d:" % number + b"x" * 5000)
    print(number, flush=True)
"""
WORK = """
import os, sys
from shared.storage.connect import open_storage
from shared.settings import Settings
storage = open_storage(Settings.from_env(os.environ))
queue = storage.queue("bulk-cpu")
while sys.argv[1] == "forever" or queue.depth():
    if message := queue.receive(visible_after_s=0.2):
        number, _, rest = message.body.partition(b":")
        assert rest == b"x" * 5000
        storage.out.create("done/" + number.decode(), message.body)
        queue.delete(message)
    print("turn", flush=True)
"""


def test_killed_senders_and_workers_lose_nothing(folder_place: Place) -> None:
    """Processes that are killed while they send and work, over and over: all that was sent gets done."""
    rng = random.Random(0)

    def start(code: str, argument: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(argument)],
            cwd=ROOT,
            env=folder_place.environ,
            stdout=subprocess.PIPE,
        )

    def killed_after(process: subprocess.Popen[bytes], lines: int) -> list[bytes]:
        """All whole lines that it said before it was killed, in the middle of something."""
        assert process.stdout is not None
        said = list(itertools.islice(process.stdout, lines))
        process.send_signal(signal.SIGKILL)
        said += process.stdout
        process.stdout.close()
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
        return [line for line in said if line.endswith(b"\n")]

    sent = 0
    for _ in range(5):
        sent = 1 + int(killed_after(start(SEND, sent), rng.randrange(10, 40))[-1])
        for worker in [start(WORK, "forever"), start(WORK, "forever")]:
            killed_after(worker, rng.randrange(1, 15))
    start(WORK, "until empty").communicate(timeout=PATIENCE_S)
    storage = folder_place.open()
    assert storage.queue("bulk-cpu").depth() == 0
    done = {stat.key: storage.out.read(stat.key) for stat in storage.out.list("")}
    # The last sender may have been killed between sending and saying so.
    done.pop(f"done/{sent}", None)
    assert done == {f"done/{number}": b"%d:" % number + b"x" * 5000 for number in range(sent)}


def test_what_dead_writers_left_is_swept(folder_place: Place, tmp_path: Path) -> None:
    """An old partial file goes with the next write, a young one may have a writer."""
    partial = tmp_path / "bulk" / "bulk-out" / ".blitz" / "partial"
    partial.mkdir(parents=True)
    (partial / "young").write_bytes(b"x")
    (partial / "old").write_bytes(b"x")
    past = time.time() - finished_file._ABANDONED_S - 1
    os.utime(partial / "old", (past, past))
    out = folder_place.open().out
    out.write("k", b"1")
    assert [path.name for path in partial.iterdir()] == ["young"]
    assert [stat.key for stat in out.list("")] == ["k"]


def test_a_folder_does_not_import_azure() -> None:
    """Startup of a process without an account does not pay for the SDK."""
    code = (
        "import sys; from shared.storage.connect import open_storage;"
        "from shared.settings import Settings;"
        "open_storage(Settings(storage='file://x'));"
        "sys.exit(any(name.startswith('azure') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# An account


def test_messages_are_as_the_functions_host_expects(azure_place: Place, azurite: Azurite) -> None:
    """Base64 on the wire, and they do not expire after Azure's seven days."""
    azure_place.open().queue("bulk-cpu").send(b'{"job": "j"}')
    with QueueServiceClient.from_connection_string(azurite.connection_string) as service:
        [message] = service.get_queue_client("bulk-cpu").peek_messages()
    assert json.loads(base64.b64decode(message.content)) == {"job": "j"}
    assert message.expires_on is not None
    assert message.expires_on.year == 9999


def test_a_message_of_others_is_handed_on_as_it_is(azure_place: Place, azurite: Azurite) -> None:
    """What is not base64 does not stop the queue: its reader can refuse it."""
    queue = azure_place.open().queue("bulk-cpu")
    assert queue.depth() == 0
    with QueueServiceClient.from_connection_string(azurite.connection_string) as service:
        service.get_queue_client("bulk-cpu").send_message('{"job": "é"}')
    assert received(queue).body == '{"job": "é"}'.encode()


def test_blobs_of_others_are_read_with_what_is_fit(
    azure_place: Place,
    azurite: Azurite,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Metadata names get lower case; a name that no folder could hold is told of, and not listed."""
    monkeypatch.setattr(shown_names, "_told", set())
    source = azure_place.open().source
    assert list(source.list("")) == []
    with BlobServiceClient.from_connection_string(azurite.connection_string) as service:
        container = service.get_container_client(SOURCE)
        container.upload_blob("m/x.txt", b"text", metadata={"Blitz_Model": "m"})
        container.upload_blob("m//y.txt", b"text")
    [stat] = source.list("")
    assert (stat.key, stat.metadata) == ("m/x.txt", {"blitz_model": "m"})
    with caplog.at_level("WARNING"):
        assert [other.key for _ in range(2) for other in source.unnamed()] == ["m//y.txt"] * 2
    [line] = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert line == 'bulk: "m//y.txt" is no name that can be worked with, and is passed over'


def test_azurite_as_people_start_it_serves_us() -> None:
    """It refuses requests of a newer version than its own, and the SDK's newest often is."""
    with running_azurite(queues=True, any_version=False) as azurite:
        storage = open_storage(Settings(storage_connection_string=azurite.connection_string))
        storage.out.write("k", os.urandom(BIG), {"a": "b"})
        assert [stat.size for stat in storage.out.list("")] == [BIG]
        storage.queue("bulk-cpu").send(b"m")
        storage.queue("bulk-cpu").delete(received(storage.queue("bulk-cpu")))


def test_a_dead_account_is_unavailable(azurite: Azurite) -> None:
    """Nobody listens on the ports: every call says so after bounded retries, and names no address."""
    dead = Azurite(free_port(), free_port()).connection_string
    storage = open_storage(Settings(storage_connection_string=dead))
    calls: list[Callable[[], object]] = [
        lambda: storage.out.create("k", b""),
        lambda: list(storage.out.list("")),
        lambda: storage.queue("q").receive(visible_after_s=1),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="the bulk storage did not answer"):
            call()


def test_a_wrong_key_is_unavailable(azurite: Azurite) -> None:
    """The service refuses us: an operator's matter, told without the key."""
    key = base64.b64encode(b"wrong").decode()
    string = azurite.connection_string
    wrong = ";".join(
        f"AccountKey={key}" if part.startswith("AccountKey=") else part for part in string.split(";")
    )
    storage = open_storage(Settings(storage_connection_string=wrong))
    calls: list[Callable[[], object]] = [
        lambda: storage.out.read("k"),
        lambda: storage.out.create("k", b""),
        lambda: storage.queue("bulk-cpu").send(b""),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="credentials"):
            call()


# Settings


def urls_of(storage: Storage) -> list[str]:
    source, out, queue = storage.source, storage.out, storage.queue("bulk-cpu")
    assert isinstance(source, AzureBlobs)
    assert isinstance(out, AzureBlobs)
    assert isinstance(queue, AzureQueue)
    return [source._container.url, out._container.url, queue._client.url]


ACCOUNT_URL = "https://one.blob.core.windows.net"
ACCOUNT_URLS = [
    f"{ACCOUNT_URL}/{SOURCE}",
    f"{ACCOUNT_URL}/{OUT}",
    "https://one.queue.core.windows.net/bulk-cpu",
]
ACCOUNT_STRING = (
    "DefaultEndpointsProtocol=https;AccountName=one;AccountKey=AAAA;EndpointSuffix=core.windows.net"
)


@pytest.mark.parametrize(
    ("url", "connection_string"),
    [
        (ACCOUNT_URL, ""),
        (ACCOUNT_URL + "/", ""),
        (ACCOUNT_URL, ACCOUNT_STRING),
        ("", ACCOUNT_STRING),
    ],
)
def test_an_account_is_named_by_url_or_connection_string(url: str, connection_string: str) -> None:
    """With the identity or with a key, blobs and queues are of the same account."""
    storage = open_storage(Settings(storage=url, storage_connection_string=connection_string))
    assert urls_of(storage) == ACCOUNT_URLS


def test_azurite_is_its_published_account_here() -> None:
    """BLITZ_STORAGE=azurite is enough; a connection string of the model store is not in its way."""
    for connection_string in ("", ACCOUNT_STRING):
        settings = Settings(storage="azurite", storage_connection_string=connection_string)
        assert urls_of(open_storage(settings)) == [
            f"http://127.0.0.1:10000/devstoreaccount1/{SOURCE}",
            f"http://127.0.0.1:10000/devstoreaccount1/{OUT}",
            "http://127.0.0.1:10001/devstoreaccount1/bulk-cpu",
        ]


@pytest.mark.parametrize("url", ["", "file://.blitz/bulk"])
def test_the_default_is_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Relative to the working directory, as the model store is."""
    monkeypatch.chdir(tmp_path)
    open_storage(Settings(storage=url)).source.write("k", b"1")
    assert (tmp_path / ".blitz" / "bulk" / "bulk-in" / "k").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("url", "connection_string"),
    [
        ("file://", ""),
        ("bulk", ""),
        ("http://one.blob.core.windows.net", ""),
        ("https://one.blob.core.windows.net/bulk-in", ""),
        ("https://one.queue.core.windows.net", ""),
        ("https://two.blob.core.windows.net", ACCOUNT_STRING),
        ("", "nonsense"),
        ("", Azurite(1).connection_string),
    ],
)
def test_a_storage_that_cannot_be_meant_is_misconfigured(url: str, connection_string: str) -> None:
    """No scheme, no folder, a container, another account's key, no queue service: all fail at open."""
    with pytest.raises(Misconfigured):
        open_storage(Settings(storage=url, storage_connection_string=connection_string))


def test_a_folder_that_vanishes_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be a disk that is away; that it is made at the first start is no news."""
    blobs = FolderBlobs(tmp_path / "bulk-in")
    for _ in range(2):
        assert list(blobs.list("")) == []
    assert caplog.records == []
    (tmp_path / "bulk-in").rmdir()
    for _ in range(2):
        assert list(blobs.list("")) == []
    (record,) = caplog.records
    assert record.message == "bulk: the folder bulk-in has vanished; it is made again, empty"
