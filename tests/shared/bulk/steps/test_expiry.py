"""What expires when, and what is left of it: nothing; and of everything else, all."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from shared.bulk import control, jobs
from shared.bulk.options import Container, JobOptions
from shared.bulk.paths import event_key
from shared.bulk.steps.expiry import (
    KEPT_S,
    delete_ended,
    delete_expired,
    expires_at,
    expiring,
    has_expired,
)
from shared.storage.blobs import BlobStat
from tests.fakes.memory import Memory

WRITTEN_S = 1_800_000_000
JOB = "0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("metadata", "at"),
    [
        ({"expires_after": "3600"}, 1_800_003_600),
        (expiring(86_400), 1_800_086_400),
        (expiring(0), None),
        ({}, None),
        ({"filename": "x"}, None),
        ({"expires_after": "soon"}, None),
        ({"expires_after": "-1"}, None),
        ({"expires_after": "1.5"}, None),
        ({"expires_after": "9" * 5_000}, None),
    ],
)
def test_a_blob_expires_so_long_after_it_was_written(
    metadata: Mapping[str, str], at: int | None
) -> None:
    """What says nothing that can be read never expires."""
    stat = BlobStat("files/a", 1, "e", WRITTEN_S + 0.75, metadata)
    assert expires_at(stat) == at
    if at is not None:
        assert not has_expired(stat, at - 0.01)
        assert has_expired(stat, at)


def test_expired_files_go_and_all_others_stay() -> None:
    """Of every owner, and those of none; what lies elsewhere does not expire."""
    memory = Memory(lambda: WRITTEN_S)
    keys = ("files/file-1", "files/owner/file-2", "files/owner/file-3", "m/x.parquet", "jobs/a/b")
    for key in keys:
        memory.out.write(key, b"x", {"expires_after": "7200" if key.endswith("3") else "3600"})
    memory.out.write("files/owner/file-dropped", b"x")
    memory.source.write("files/owner/file-1", b"x", {"expires_after": "3600"})
    delete_expired(memory.storage, WRITTEN_S + 3599)
    assert len(memory.out.blobs) == 6
    delete_expired(memory.storage, WRITTEN_S + 3600)
    assert sorted(memory.out.blobs) == [
        "files/owner/file-3",
        "files/owner/file-dropped",
        "jobs/a/b",
        "m/x.parquet",
    ]
    assert len(memory.source.blobs) == 1


def test_an_expired_batch_goes_with_all_that_is_known_of_its_job() -> None:
    """One that still runs is cancelled first, and goes when it has ended."""
    memory = Memory(lambda: WRITTEN_S)
    out = memory.out
    job = jobs.Job(
        JOB, "out", "files/o/file-in", "e", 1, JobOptions(), "r", 2, "cpu", WRITTEN_S, "batch"
    )
    record, other = f"batches/owner/batch_{JOB}", "batches/batch_ffffffffffffffffffffffff"
    out.write(record, b"{}", {"expires_after": "3600"})
    out.write(other, b"{}")
    out.write(f"jobs/{JOB}/job.json", jobs.encode(job))
    out.write(event_key("out", job.source, job.etag), JOB.encode())
    out.write(f"active/{JOB}", b"")
    late = WRITTEN_S + 3600
    delete_expired(memory.storage, late)
    assert out.stat(f"jobs/{JOB}/cancel") is not None
    assert memory.storage.queue(control.FINISH).depth() == 1
    assert out.stat(record) is not None
    out.delete(f"active/{JOB}")
    delete_expired(memory.storage, late)
    assert list(out.blobs) == [other]
    delete_expired(memory.storage, late)


def test_the_job_of_a_batch_is_kept_as_long_as_the_batch() -> None:
    """However long ago it ended: its batch would seem to wait again. That of a dropped file goes."""
    memory = Memory(lambda: WRITTEN_S)
    containers: dict[str, Container] = {"a" * 24: "out", "b" * 24: "source"}
    for job_id, container in containers.items():
        job = jobs.Job(job_id, container, "k", "e", 1, JobOptions(), "r", 2, "cpu", WRITTEN_S, "jsonl")
        memory.out.write(f"jobs/{job_id}/job.json", jobs.encode(job))
        memory.out.write(f"jobs/{job_id}/manifest.json", b"{}")
    delete_ended(memory.storage, WRITTEN_S + KEPT_S + 1)
    assert sorted(memory.out.blobs) == [
        f"jobs/{'a' * 24}/job.json",
        f"jobs/{'a' * 24}/manifest.json",
    ]
