"""The bulk triggers in Microsoft's worker library: an event of Event Grid becomes a file of vectors."""

from __future__ import annotations

import asyncio
import io
import json
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import azure.functions as func
import numpy as np
import pyarrow.parquet as pq
import pytest

from functions.bulk.steps import build_bulk
from functions.bulk.triggers import blobs_of, register
from shared.errors import Unavailable
from shared.settings import Settings
from shared.storage.blobs import Storage
from shared.storage.connect import open_storage
from tests.azurite import running_azurite
from tests.functions.worker import Worker, running_worker
from tests.tiny import Tiny, nearly, publish_all

TINY = Tiny("tiny")
ROWS = 700
TEXTS = [f"w{row % 90} w{row % 7}" for row in range(ROWS)]
INPUT = b"".join(
    json.dumps({"id": f"r{n}", "text": text}).encode() + b"\n" for n, text in enumerate(TEXTS)
)
QUEUES = ("bulk-split", "bulk-cpu", "bulk-finish")


@dataclass(frozen=True)
class App:
    """The CPU app in the worker library, and the storage that it works on."""

    worker: Worker
    storage: Storage

    def event(self, key: str) -> bytes:
        """What Event Grid would write to the queue of events."""
        stat = self.storage.source.stat(key)
        assert stat
        return _event(key, stat.etag)

    def drain(self) -> None:
        """Do as the host: give each message to its function, delete it if that does not raise."""
        more = True
        while more:
            more = False
            for name in QUEUES:
                queue = self.storage.queue(name)
                while message := queue.receive(visible_after_s=60):
                    self.worker.message(name, message.body)
                    queue.delete(message)
                    more = True

    def status(self, key: str) -> dict[str, Any]:
        """Of the one job of that input."""
        found = [
            json.loads(self.storage.out.read(stat.key) or b"")
            for stat in self.storage.out.list("jobs/")
            if stat.key.endswith("/status.json")
        ]
        (status,) = (status for status in found if status["source"] == key)
        return dict(status)

    def take(self, queue: str) -> bytes:
        """The one message that is visible, deleted."""
        message = self.storage.queue(queue).receive(visible_after_s=60)
        assert message
        self.storage.queue(queue).delete(message)
        return message.body


def _event(key: str, etag: str, container: str = "bulk-in") -> bytes:
    event = {
        "topic": "/subscriptions/S/resourceGroups/G/providers/Microsoft.Storage/storageAccounts/a",
        "subject": f"/blobServices/default/containers/{container}/blobs/{key}",
        "eventType": "Microsoft.Storage.BlobCreated",
        "id": "831e1650-001e-001b-66ab-eeb76e069631",
        "data": {"api": "PutBlob", "eTag": etag, "contentLength": 1, "url": "https://a/bulk-in/x"},
        "dataVersion": "",
        "metadataVersion": "1",
        "eventTime": "2026-06-26T18:41:00.9584103Z",
    }
    return json.dumps(event).encode()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"file://{tmp_path_factory.mktemp('models')}"
    publish_all([TINY], url)
    return url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bulk")


@pytest.fixture(scope="module")
def app(models: str, folder: Path) -> Iterator[App]:
    """Over a folder."""
    storage = f"file://{folder}"
    settings = {"BLITZ_ROLE": "cpu", "BLITZ_MODEL_STORE": models, "BLITZ_STORAGE": storage}
    with running_worker(settings) as worker:
        yield App(worker, open_storage(Settings(storage=storage)))


@pytest.fixture(scope="module")
def azure_app(models: str) -> Iterator[App]:
    """Over Azurite, with its queues."""
    with running_azurite(queues=True) as azurite:
        connection = azurite.connection_string
        settings = {
            "BLITZ_ROLE": "cpu",
            "BLITZ_MODEL_STORE": models,
            "BLITZ_STORAGE_CONNECTION_STRING": connection,
        }
        with running_worker(settings) as worker:
            yield App(worker, open_storage(Settings(storage_connection_string=connection)))


@pytest.mark.parametrize("where", ["app", "azure_app"])
def test_an_event_becomes_a_file_of_vectors(where: str, request: pytest.FixtureRequest) -> None:
    """Event, split, embed, finish, each by its function: every row, in order, with its right vector."""
    app: App = request.getfixturevalue(where)
    app.storage.source.write("tiny/a.jsonl", INPUT)
    app.worker.message("bulk-events", app.event("tiny/a.jsonl"))
    app.drain()
    table = pq.read_table(io.BytesIO(app.storage.out.read("tiny/a.jsonl.parquet") or b""))
    assert table["id"].to_pylist() == [f"r{n}" for n in range(ROWS)]
    assert nearly(np.stack(table["vector"].to_pylist()), TINY.vectors(TEXTS))
    assert app.status("tiny/a.jsonl")["status"] == "completed"


def test_an_event_that_comes_twice_is_split_once(app: App) -> None:
    """And one of another container, of a sidecar or of nothing we know, not at all."""
    app.storage.source.write("tiny/twice.txt", b"w1\n")
    for event in (
        app.event("tiny/twice.txt"),
        app.event("tiny/twice.txt"),
        _event("tiny/b.txt", "1", container="bulk-out"),
        _event("tiny/twice.txt.job.json", "1"),
        b"not an event",
    ):
        app.worker.message("bulk-events", event)
    assert app.storage.queue("bulk-split").depth() == 1
    app.drain()
    assert app.status("tiny/twice.txt")["request_counts"]["completed"] == 1


def test_a_poisonous_chunk_becomes_failed_rows(app: App) -> None:
    """The host moves its message to bulk-cpu-poison; the job ends with errors and does not hang."""
    app.storage.source.write("tiny/poison.txt", b"w1\nw2\n")
    app.worker.message("bulk-events", app.event("tiny/poison.txt"))
    app.worker.message("bulk-split", app.take("bulk-split"))
    app.worker.message("bulk-cpu-poison", app.take("bulk-cpu"))
    app.drain()
    counts = app.status("tiny/poison.txt")["request_counts"]
    assert counts == {"total": 2, "completed": 0, "failed": 2}


@pytest.mark.parametrize("begun", [False, True])
def test_a_poisonous_input_is_a_failed_job(app: App, begun: bool) -> None:
    """Whether or not a splitter came so far as to make the job."""
    key = f"tiny/unreadable-{begun}.txt"
    app.storage.source.write(key, b"w1\n")
    app.worker.message("bulk-events", app.event(key))
    message = app.take("bulk-split")
    if begun:
        app.worker.message("bulk-split", message)
        app.take("bulk-cpu")
    app.worker.message("bulk-split-poison", message)
    status = app.status(key)
    assert status["status"] == "failed"
    assert "several tries" in status["error"]


def test_an_output_that_cannot_be_written_is_a_failed_job(app: App) -> None:
    """Its message ends in bulk-finish-poison, and the timer would send it again forever."""
    app.storage.source.write("tiny/unwritable.txt", b"w1\n")
    app.worker.message("bulk-events", app.event("tiny/unwritable.txt"))
    app.worker.message("bulk-split", app.take("bulk-split"))
    app.worker.message("bulk-cpu", app.take("bulk-cpu"))
    app.worker.message("bulk-finish-poison", app.take("bulk-finish"))
    assert app.status("tiny/unwritable.txt")["status"] == "failed"


def test_garbage_in_a_poison_queue_is_dropped(app: App) -> None:
    """The host would give it back forever."""
    app.worker.message("bulk-cpu-poison", b"garbage")


def test_the_timer_finds_an_input_without_an_event(app: App, folder: Path) -> None:
    """Once it is older than an event could be late."""
    app.storage.source.write("tiny/missed.txt", b"w1\n")
    app.worker.timer("bulk_reconcile")
    assert app.storage.queue("bulk-split").depth() == 0
    old = time.time() - 1000
    os.utime(folder / "bulk-in/tiny/missed.txt", (old, old))
    app.worker.timer("bulk_reconcile")
    app.drain()
    assert app.status("tiny/missed.txt")["status"] == "completed"


def _cloud_event(key: str, **changes: object) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "type": "Microsoft.Storage.BlobCreated",
        "source": "/subscriptions/S",
        "id": "9aeb0fdf-c01e-0131-0922-9eb54906e209",
        "subject": f"/blobServices/default/containers/bulk-in/blobs/{key}",
        "data": {"api": "PutBlob", "eTag": "0x8D"},
        **changes,
    }


VALIDATION = {
    "id": "2d1781af-3a4c-4d7c-bd0c-e34b19da4e66",
    "subject": "",
    "data": {"validationCode": "512d38b6"},
    "eventType": "Microsoft.EventGrid.SubscriptionValidationEvent",
}


@pytest.mark.parametrize(
    ("event", "blobs", "others"),
    [
        (_event("m/a b.jsonl", "0x8D"), [("m/a b.jsonl", "0x8D")], 0),
        (_event("m/a.jsonl", '"0x8D"'), [("m/a.jsonl", "0x8D")], 0),
        (_cloud_event("a"), [("a", "0x8D")], 0),
        (_cloud_event("a", data={"url": ""}), [("a", "")], 0),
        (_cloud_event("a", data=None, type="Microsoft.Storage.BlobRenamed"), [("a", "")], 0),
        ([_cloud_event("a"), _cloud_event("m/b")], [("a", "0x8D"), ("m/b", "0x8D")], 0),
        (b"[%b, %b]" % (_event("a", "1"), _event("b", "2")), [("a", "1"), ("b", "2")], 0),
        ([VALIDATION, _cloud_event("a"), 7, None, {}], [("a", "0x8D")], 4),
        (VALIDATION, [], 1),
        (_cloud_event("a", type="Microsoft.Storage.BlobDeleted"), [], 1),
        (_cloud_event("a", data={"eTag": 7}), [], 1),
        (_event("a", "1", container="bulk-inner"), [], 1),
        (_event("", "1"), [], 1),
        ([], [], 0),
    ],
)
def test_which_blobs_events_are_about(event: object, blobs: list[tuple[str, str]], others: int) -> None:
    """One or several, both of Event Grid's schemas, ETags quoted or not; others are counted."""
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    assert blobs_of(body) == (blobs, others)


GARBAGE = [
    b"zebra",
    b"",
    b"\xff",
    b"[" * 100_000,
    b"7",
    b'{"job": 7}',
    b"{}",
    b"[]",
    b'{"job": "", "chunk": "000000-1.arrow"}',
    b'{"job": "zebra/../zebra", "chunk": "zebra", "key": "m/zebra"}',
    b'{"job": "", "key": "zebra\\n"}',
    b'{"container": "zebra"}',
]


@pytest.mark.parametrize("body", GARBAGE)
@pytest.mark.parametrize(
    "queue",
    ["bulk-events", *QUEUES, *(f"{name}-poison" for name in QUEUES)],
)
def test_a_message_that_is_none_is_told_of_once_and_dropped(
    queue: str, body: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With its queue and id, without its content; the host would give it back forever."""
    app = func.AsgiFunctionApp(app=None, http_auth_level=func.AuthLevel.ANONYMOUS)
    settings = Settings(storage=f"file://{tmp_path}", model_store=f"file://{tmp_path}/models")
    bulk = build_bulk(settings, open_storage(settings), None)
    register(app, bulk, "cpu")
    handles = {each.get_function_name(): each.get_user_function() for each in app.get_functions()}
    message = func.QueueMessage(id="5f0b\n1c", body=body)
    asyncio.run(handles[queue.replace("-", "_")](message))
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith(f"bulk: message 5f0b\\n1c of {queue} is dropped: ")
    assert "zebra" not in caplog.text


def test_events_of_a_message_that_are_good_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    """And the others told of."""

    class Steps:
        noticed: list[tuple[str, str]] = []

        async def notice(self, key: str, etag: str) -> None:
            self.noticed.append((key, etag))

        async def split(self, body: bytes) -> None: ...

        embed = finish = give_up = reconcile = split

    app = func.AsgiFunctionApp(app=None, http_auth_level=func.AuthLevel.ANONYMOUS)
    steps = Steps()
    register(app, steps, "cpu")  # type: ignore[arg-type]
    handles = {each.get_function_name(): each.get_user_function() for each in app.get_functions()}
    events = json.dumps([VALIDATION, _cloud_event("a"), _cloud_event("b")]).encode()
    asyncio.run(handles["bulk_events"](func.QueueMessage(id="7", body=events)))
    assert steps.noticed == [("a", "0x8D"), ("b", "0x8D")]
    assert "message 7 of bulk-events is dropped: 1 of its 3 events tell of no blob" in caplog.text


def test_the_host_is_told_no_message_but_ours() -> None:
    """It logs exceptions whole, and a library's may quote a row."""

    class Steps:
        error: Exception = ValueError("row 3: zebra")

        async def embed(self, body: bytes) -> None:
            raise self.error

        async def give_up(self, body: bytes) -> None: ...

    app = func.AsgiFunctionApp(app=None, http_auth_level=func.AuthLevel.ANONYMOUS)
    steps = Steps()
    register(app, steps, "gpu")  # type: ignore[arg-type]
    handles = {each.get_function_name(): each.get_user_function() for each in app.get_functions()}
    for error, told in (
        (steps.error, "unexpected ValueError"),
        (Unavailable("the store is away"), "the store is away"),
    ):
        steps.error = error
        with pytest.raises(Exception, match=told) as caught:
            asyncio.run(handles["bulk_gpu"](func.QueueMessage(body=b"x")))
        assert "zebra" not in "".join(traceback.format_exception(caught.value))
