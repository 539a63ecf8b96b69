"""When files and batches expire; deletes expired ones, and the state of jobs that ended long ago.

A blob without a time in its metadata never expires. Does not know how a time was chosen, nor HTTP.
"""

from __future__ import annotations

from contextlib import suppress

from shared.bulk import control
from shared.bulk.paths import EVENTS, JOBS, JobPaths, event_key, job_of_manifest
from shared.errors import InvalidInput
from shared.storage.blobs import Blobs, BlobStat, Storage

KEPT_S = 30 * 86400.0
"""How long the state of an ended job is kept: job, status and manifest."""

_EXPIRES_AFTER = "expires_after"
"""The metadata: seconds from when the blob was written."""
_FOLDERS = ("files/", "batches/")


def expiring(after_s: int) -> dict[str, str]:
    """The metadata of a blob that expires so many seconds after it was written; 0: never."""
    return {_EXPIRES_AFTER: str(after_s)} if after_s else {}


def expires_at(stat: BlobStat) -> int | None:
    """Unix seconds; None: never."""
    after = stat.metadata.get(_EXPIRES_AFTER, "")
    # Others may write blobs too, with any metadata.
    return int(stat.modified_s) + int(after) if after.isdecimal() and len(after) <= 12 else None


def has_expired(stat: BlobStat, now_s: float) -> bool:
    """Whether its time of expiry is there and past. now_s: Unix seconds."""
    at = expires_at(stat)
    return at is not None and at <= now_s


def delete_expired(storage: Storage, now_s: float) -> None:
    """Delete expired files and batches; with a batch, all state of its job.

    A batch that has not ended by then is cancelled, and deleted by a later run. Blocking.
    """
    out = storage.out
    files, batches = (
        [stat.key for stat in out.list(folder) if has_expired(stat, now_s)] for folder in _FOLDERS
    )
    for key in files:
        out.delete(key)
    for key in batches:
        job_id = key.rpartition("batch_")[2]
        if out.stat(JobPaths(job_id).active) is None:
            _forget(out, job_id)
            out.delete(key)  # last: if the process is killed before, the next run goes on
        else:
            with suppress(InvalidInput):  # it has ended meanwhile
                control.cancel_job(storage, job_id)


def delete_ended(storage: Storage, now_s: float) -> None:
    """Delete the state of jobs that ended KEPT_S ago, and marks of inputs that are gone. Blocking.

    The job of a batch is deleted with the batch, which needs its status.
    """
    out = storage.out
    ended = [
        job_id
        for stat in out.list(JOBS)
        if (job_id := job_of_manifest(stat.key)) and now_s - stat.modified_s > KEPT_S
    ]
    for job_id in ended:
        job, paths = control.read_job(out, job_id), JobPaths(job_id)
        if job is not None and job.container == "out":
            continue
        # The manifest is deleted last: without it the job would seem to run.
        for key in sorted((stat.key for stat in out.list(paths.folder)), key=paths.manifest.__eq__):
            out.delete(key)
    there = {event_key("source", stat.key, stat.etag) for stat in storage.source.list("")}
    for stat in list(out.list(EVENTS)):
        if stat.key not in there and now_s - stat.modified_s > KEPT_S:
            out.delete(stat.key)


def _forget(out: Blobs, job_id: str) -> None:
    job = control.read_job(out, job_id)
    if job is not None:
        out.delete(event_key(job.container, job.source, job.etag))
    for stat in list(out.list(JobPaths(job_id).folder)):
        out.delete(stat.key)
