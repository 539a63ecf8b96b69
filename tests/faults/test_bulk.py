"""Bulk jobs whose processes are killed, whose storage goes away, and whose events come in disorder.

Real processes over a real Azurite. After each fault the output is the very bytes of a run without one,
and its rows, ids and vectors are right.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest

from shared.bulk.control import FINISH, SPLIT, find_job, read_manifest
from shared.bulk.jobs import StepMessage, encode
from shared.errors import StoreUnavailable
from shared.settings import Settings
from shared.storage.blobs import Storage
from shared.storage.connect import open_storage
from tests.azurite import Azurite, running_azurite
from tests.faults.bulk_worker import GO_ON, REACHED
from tests.patience import wait_until
from tests.server import ROOT
from tests.tiny import Tiny, publish_all, some_text

TINY = Tiny("bulk", dimensions=128, work=40)
ROWS = 5_000
_NAMES = itertools.count()


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    with running_azurite(queues=True) as azurite:
        yield azurite


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"file://{tmp_path_factory.mktemp('models')}"
    publish_all([TINY], url)
    return url


@pytest.fixture(scope="module")
def texts() -> list[str]:
    random = Random(5)
    return [some_text(random) for _ in range(ROWS)]


@pytest.fixture(scope="module")
def expected(azurite: Azurite, store: str, texts: list[str]) -> bytes:
    """The output of a run without a fault, of which every row was checked."""
    job = BulkJob(azurite, store, texts)
    with job.worker():
        output = job.wait_for_the_end()
    table = pq.read_table(io.BytesIO(output))
    assert table["id"].to_pylist() == [f"id-{row}" for row in range(ROWS)]
    assert table["text"].to_pylist() == texts
    vectors = np.stack(table["vector"].to_numpy(zero_copy_only=False))
    np.testing.assert_allclose(vectors, TINY.vectors(texts), atol=1e-5)
    return output


class BulkJob:
    """An input of its own in `azurite`, and workers on it."""

    def __init__(self, azurite: Azurite, store: str, texts: list[str]) -> None:
        self._azurite = azurite
        self._store = store
        self.key = f"{TINY.name}/texts-{next(_NAMES)}.jsonl"
        self.storage: Storage = open_storage(
            Settings(storage_connection_string=azurite.connection_string)
        )
        rows = ({"id": f"id-{row}", "text": text} for row, text in enumerate(texts))
        self.storage.source.write(self.key, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        stat = self.storage.source.stat(self.key)
        assert stat
        self.etag = stat.etag

    @contextmanager
    def worker(self, part: str = "nothing", number: int = 1) -> Iterator[Worker]:
        """A process that works on jobs, killed (-9) at the end.

        It halts at its `number`-th write of a blob that has `part` in its name.
        """
        environ = {
            "BLITZ_MODEL_STORE": self._store,
            "BLITZ_STORAGE_CONNECTION_STRING": self._azurite.connection_string,
            "BLITZ_THREADS": "1",
        }
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tests.faults.bulk_worker", folder, part, str(number)]
            process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environ})
            try:
                yield Worker(process, Path(folder))
            finally:
                process.kill()
                process.wait()

    def submit(self) -> None:
        """The input's event, once more."""
        self.storage.queue(SPLIT).send(encode(StepMessage(key=self.key, etag=self.etag)))

    def wait_for_the_end(self) -> bytes:
        """The output, once the job has ended well."""
        wait_until(self._has_ended)
        assert self.job_id
        manifest = read_manifest(self.storage.out, self.job_id)
        assert manifest
        assert manifest.status.status == "completed"
        assert manifest.status.request_counts.completed == ROWS
        assert manifest.status.request_counts.failed == 0
        data = self.storage.out.read(manifest.job.output)
        assert data
        return data

    def _has_ended(self) -> bool:
        with suppress(StoreUnavailable):  # a slow Azurite is asked again
            return bool(self.job_id and read_manifest(self.storage.out, self.job_id))
        return False

    @property
    def job_id(self) -> str | None:
        return find_job(self.storage.out, "source", self.key, self.etag)


@dataclass(frozen=True)
class Worker:
    """A started process of tests/faults/bulk_worker.py."""

    process: subprocess.Popen[bytes]
    folder: Path

    def wait_until_it_halts(self) -> None:
        wait_until((self.folder / REACHED).exists)
        assert self.process.poll() is None

    def go_on(self) -> None:
        (self.folder / GO_ON).touch()


STAGES = {
    "the job was made": ("/job.json", 1),
    "some chunks are written": ("/chunks/", 3),
    "all chunks are written": ("/split.json", 1),
    "some parts are written": ("/parts/", 3),
    "most parts are written": ("/parts/", ROWS // 512 - 2),
    "the output is being written": (".parquet", 1),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_process_changes_nothing(
    azurite: Azurite, store: str, texts: list[str], expected: bytes, stage: str
) -> None:
    """kill -9 of the process that splits, embeds and finishes, at each stage; another one goes on."""
    job = BulkJob(azurite, store, texts)
    with job.worker(*STAGES[stage]) as worker:
        worker.wait_until_it_halts()
    with job.worker():
        assert job.wait_for_the_end() == expected


def test_one_of_two_workers_is_killed_again_and_again(
    azurite: Azurite, store: str, texts: list[str], expected: bytes
) -> None:
    """Three that have written a part; the other one, which has work in its hands, does all the rest."""
    job = BulkJob(azurite, store, texts)
    with job.worker("/parts/", 2) as other:
        other.wait_until_it_halts()
        for _ in range(3):
            with job.worker("/parts/") as killed:
                killed.wait_until_it_halts()
        other.go_on()
        assert job.wait_for_the_end() == expected


def test_events_that_come_often_and_messages_out_of_order_change_nothing(
    azurite: Azurite, store: str, texts: list[str], expected: bytes
) -> None:
    """The event five times before, ten times while it runs, with finishes that are too early."""
    job = BulkJob(azurite, store, texts)
    for _ in range(5):
        job.submit()
    with job.worker("/parts/") as worker:
        worker.wait_until_it_halts()
        for _ in range(10):
            job.submit()
            job.storage.queue(FINISH).send(encode(StepMessage(job=job.job_id or "")))
        worker.go_on()
        assert job.wait_for_the_end() == expected
        for _ in range(3):
            job.submit()
            job.storage.queue(FINISH).send(encode(StepMessage(job=job.job_id or "")))
        queues = [job.storage.queue(name) for name in (SPLIT, FINISH, "bulk-cpu")]
        wait_until(lambda: not any(queue.depth() for queue in queues))
        assert job.wait_for_the_end() == expected


def test_a_storage_that_is_away_for_20_seconds_changes_nothing(
    store: str, texts: list[str], expected: bytes, tmp_path: Path
) -> None:
    """Azurite is stopped in the middle and started again with what it had; nobody else is restarted."""
    with ExitStack() as running:
        with running_azurite(queues=True, folder=tmp_path) as azurite:
            job = BulkJob(azurite, store, texts)
            worker = running.enter_context(job.worker("/parts/", 3))
            worker.wait_until_it_halts()
        worker.go_on()
        time.sleep(20)
        port, queue_port = azurite.port, azurite.queue_port
        with running_azurite(port=port, queues=True, queue_port=queue_port, folder=tmp_path):
            assert job.wait_for_the_end() == expected
            running.close()  # before its storage
