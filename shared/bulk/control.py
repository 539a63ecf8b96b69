"""Bulk jobs from outside: begin one, find it, look at it, cancel it. From storage alone; blocking.

Does not know models, nor how jobs are worked on.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.bulk import jobs
from shared.bulk.jobs import Counts, Job, JobManifest, Split, State, Status, StepMessage
from shared.bulk.options import Container
from shared.cards import Device
from shared.errors import InvalidInput
from shared.storage.blobs import Blobs, Storage

SPLIT, FINISH = "bulk-split", "bulk-finish"


def queue_of(device: Device) -> str:
    """The queue that the workers of a device's app read."""
    return f"bulk-{device}"


@dataclass(frozen=True, slots=True)
class Progress:
    """What there is to tell of a job, begun or not. Times are Unix seconds.

    status: None until a splitter has taken it up. tokens: fed to the model, once it has ended.
    """

    status: Status | None = None
    tokens: int | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    cancelling_at: int | None = None


def begin_job(storage: Storage, job_id: str, key: str, etag: str, keep_s: int = 0) -> None:
    """Have a version of a blob of `out` embedded as a job of its own, whoever else asks for the same.

    job_id: 24 hex digits that no other job has. keep_s: so long its outputs are kept; 0: for ever.
    """
    message = jobs.encode(StepMessage(job=job_id, container="out", key=key, etag=etag, keep_s=keep_s))
    # First the mark, which `reconcile` reads: no listing of inputs would find a lost message again.
    storage.out.create(f"active/{job_id}", message)
    storage.queue(SPLIT).send(message)


def find_job(out: Blobs, container: Container, key: str, etag: str) -> str | None:
    """The id of the job of a version of an input; None if nobody has seen it yet."""
    seen = out.read(jobs.event_key(container, key, etag))
    return seen.decode() if seen else None


def read_job(out: Blobs, job_id: str) -> Job | None:
    data = out.read(f"jobs/{job_id}/job.json")
    return None if data is None else jobs.decode(data, Job)


def read_manifest(out: Blobs, job_id: str) -> JobManifest | None:
    """None while it runs, or if there is no such job."""
    data = out.read(f"jobs/{job_id}/manifest.json")
    return None if data is None else jobs.decode(data, JobManifest)


def made_job(out: Blobs, job_id: str) -> Job | None:
    """The same; also of a job that could not begin, as far as it came."""
    manifest = read_manifest(out, job_id)
    return manifest.job if manifest else read_job(out, job_id)


def read_status(out: Blobs, job_id: str) -> Status | None:
    """What is true now, from what is there; None if there is no such job."""
    job = read_job(out, job_id)
    return None if job is None else status_of(out, job)


def read_progress(out: Blobs, job_id: str) -> Progress:
    """The same and more; of a job, too, that has not begun."""

    def created_at(name: str) -> int | None:
        stat = out.stat(f"jobs/{job_id}/{name}")
        return int(stat.modified_s) if stat else None

    manifest, cancelling_at = read_manifest(out, job_id), created_at("cancel")
    begun_at = None if cancelling_at else created_at("final.json")
    status = manifest.status if manifest else read_status(out, job_id)
    return Progress(
        status=status,
        tokens=manifest.tokens if manifest else None,
        in_progress_at=created_at("split.json"),
        finalizing_at=(status and status.finalizing_at) or begun_at,
        cancelling_at=cancelling_at,
    )


def status_of(out: Blobs, job: Job, split: Split | None = None) -> Status:
    """split: how the input was cut; None: as storage has it, if it is cut."""
    folder = f"jobs/{job.id}"
    if (ended := read_manifest(out, job.id)) is not None:
        return ended.status
    if split is None and (found := out.read(f"{folder}/split.json")):
        split = jobs.decode(found, Split)
    parts = [jobs.rows_of(stat.key) for stat in out.list(f"{folder}/parts/")]
    failed = sum(jobs.rows_of(stat.key) for stat in out.list(f"{folder}/failed/"))
    state: State = "validating"
    if out.stat(f"{folder}/cancel"):
        state = "cancelling"
    elif split is not None:
        state = "finalizing" if len(parts) == split.parts else "in_progress"
    # A request that goes on in a second chunk may fail in both; it has one failure in the end.
    completed = max(0, sum(parts) - failed)
    counts = Counts(split.rows if split else 0, completed, failed + (split.bad if split else 0))
    return jobs.status_of(job, state, counts)


def cancel_job(storage: Storage, job_id: str) -> None:
    """End a job: chunks not begun are dropped, what has vectors is in the output.

    Nothing happens if it has ended. Raises InvalidInput if there is no such job.
    """
    out = storage.out
    job = read_job(out, job_id)
    if job is None and out.stat(f"active/{job_id}") is None:
        raise InvalidInput("there is no job of that id", field="job")
    if read_manifest(out, job_id) is None:
        out.create(f"jobs/{job_id}/cancel", b"")
        if job is not None:
            out.write(f"jobs/{job_id}/status.json", jobs.encode(status_of(out, job)))
        # A job that has not begun yet finds the mark when it does.
        storage.queue(FINISH).send(jobs.encode(StepMessage(job=job_id)))
