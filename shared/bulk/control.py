"""Control of bulk jobs: begin, find, read and cancel them, through storage alone. Blocking.

Does not know models, nor the steps of a job.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from shared.bulk import jobs
from shared.bulk.jobs import Counts, Job, JobManifest, Split, State, Status, StepMessage
from shared.bulk.options import Container
from shared.bulk.paths import ACTIVE, JOBS, JobPaths, event_key, job_of_status, rows_of
from shared.cards import Device
from shared.errors import InvalidInput
from shared.storage.blobs import Blobs, Storage

SPLIT, FINISH = "bulk-split", "bulk-finish"


def queue_of(device: Device) -> str:
    """The queue that the workers of a device's app read."""
    return f"bulk-{device}"


class Progress(msgspec.Struct, frozen=True):
    """What is known of a job, begun or not. Times are Unix seconds.

    status: None until a splitter has taken it up. tokens: fed to the model, once it has ended.
    """

    status: Status | None = None
    tokens: int | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    cancelling_at: int | None = None


def begin_job(storage: Storage, job_id: str, key: str, etag: str, keep_s: int = 0) -> None:
    """Have a version of a blob of `out` embedded as a job of its own, whatever other jobs there are.

    job_id: 24 hex digits that no other job has. keep_s: how long its outputs are kept; 0: for ever.
    """
    message = jobs.encode(StepMessage(job=job_id, container="out", key=key, etag=etag, keep_s=keep_s))
    # The mark first: `reconcile` reads it and sends a lost message again, which a listing of inputs
    # would not.
    storage.out.create(JobPaths(job_id).active, message)
    storage.queue(SPLIT).send(message)


def find_job(out: Blobs, container: Container, key: str, etag: str) -> str | None:
    """The id of the job of a version of an input; None if nobody has seen it yet."""
    seen = out.read(event_key(container, key, etag))
    return seen.decode() if seen else None


def read_job(out: Blobs, job_id: str) -> Job | None:
    """None if there is no such job."""
    data = out.read(JobPaths(job_id).job)
    return None if data is None else jobs.decode(data, Job)


def read_manifest(out: Blobs, job_id: str) -> JobManifest | None:
    """None while it runs, or if there is no such job."""
    data = out.read(JobPaths(job_id).manifest)
    return None if data is None else jobs.decode(data, JobManifest)


def made_job(out: Blobs, job_id: str) -> Job | None:
    """A job, also one that has ended or was rejected."""
    manifest = read_manifest(out, job_id)
    return manifest.job if manifest else read_job(out, job_id)


def list_statuses(out: Blobs) -> Iterator[Status]:
    """Of all jobs, as they were written last, in no promised order."""
    for stat in out.list(JOBS):
        if job_of_status(stat.key) is not None and (data := out.read(stat.key)) is not None:
            yield jobs.decode(data, Status)


def active_jobs(out: Blobs) -> set[str]:
    """The ids of the jobs that run or are to begin."""
    return {stat.key.removeprefix(ACTIVE) for stat in out.list(ACTIVE)}


def read_status(out: Blobs, job_id: str) -> Status | None:
    """The current status, derived from the state blobs; None if there is no such job."""
    job = read_job(out, job_id)
    return None if job is None else status_of(out, job)


def read_progress(out: Blobs, job_id: str) -> Progress:
    """Status and times; also of a job that has not begun."""

    def created_at(key: str) -> int | None:
        stat = out.stat(key)
        return int(stat.modified_s) if stat else None

    paths = JobPaths(job_id)
    manifest, status = read_manifest(out, job_id), None
    if manifest is None:
        status = read_status(out, job_id)
        manifest = read_manifest(out, job_id)  # it may have ended meanwhile: then it has its tokens too
    status = manifest.status if manifest else status
    cancelling_at = created_at(paths.cancel)
    begun_at = None if cancelling_at else created_at(paths.final)
    return Progress(
        status=status,
        tokens=manifest.tokens if manifest else None,
        in_progress_at=created_at(paths.split),
        finalizing_at=(status and status.finalizing_at) or begun_at,
        cancelling_at=cancelling_at,
    )


def status_of(out: Blobs, job: Job, split: Split | None = None) -> Status:
    """split: how the input was cut, if the caller knows it; None: it is read."""
    paths = JobPaths(job.id)
    if (ended := read_manifest(out, job.id)) is not None:
        return ended.status
    if split is None and (found := out.read(paths.split)):
        split = jobs.decode(found, Split)
    embedded = [rows_of(stat.key) for stat in out.list(paths.embedded)]
    failed = sum(rows_of(stat.key) for stat in out.list(paths.failed))
    state: State = "validating"
    if out.stat(paths.cancel):
        state = "cancelling"
    elif split is not None:
        state = "finalizing" if len(embedded) == split.to_embed else "in_progress"
    # A request whose texts lie in two chunks may fail in both, and still is one failed request.
    completed = max(0, sum(embedded) - failed)
    counts = Counts(split.rows if split else 0, completed, failed + (split.bad if split else 0))
    return jobs.status_of(job, state, counts)


def cancel_job(storage: Storage, job_id: str) -> None:
    """Cancel a job: chunks that wait are dropped, rows that have vectors are in the output.

    Nothing happens if it has ended. Raises InvalidInput if there is no such job.
    """
    out, paths = storage.out, JobPaths(job_id)
    job = read_job(out, job_id)
    if job is None and out.stat(paths.active) is None:
        raise InvalidInput("there is no job of that id", field="job")
    if read_manifest(out, job_id) is None:
        out.create(paths.cancel, b"")
        if job is not None:
            out.write(paths.status, jobs.encode(status_of(out, job)))
        # A job that has not begun yet finds the mark when it does.
        storage.queue(FINISH).send(jobs.encode(StepMessage(job=job_id)))
