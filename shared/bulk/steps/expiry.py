"""When files and batches expire, and what deletes those that have, and the state of jobs that ended.

What has no time of its own in its metadata never expires: files that were there before, or that
somebody else put there. Does not know how a time was chosen, nor HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from shared.bulk import control, jobs
from shared.errors import InvalidInput
from shared.storage.blobs import Blobs, BlobStat, Storage

KEPT_S = 30 * 86400.0
"""So long after its end a job's state is kept: its status, its manifest, what it was asked."""

_EXPIRES_AFTER = "expires_after"
"""The metadata: seconds from when the blob was written."""
_FOLDERS = ("files/", "batches/")


def expiring(after_s: int) -> dict[str, str]:
    """The metadata of a blob that expires so many seconds after it was written; 0: never."""
    return {_EXPIRES_AFTER: str(after_s)} if after_s else {}


def expires_at(stat: BlobStat) -> int | None:
    """Unix seconds; None: never."""
    return expiry_from(int(stat.modified_s), stat.metadata)


def expiry_from(written_s: int, metadata: Mapping[str, str]) -> int | None:
    """The same, of a blob written at such a time."""
    after = metadata.get(_EXPIRES_AFTER, "")
    # Whoever may write blobs may write anything.
    return written_s + int(after) if after.isdecimal() and len(after) <= 12 else None


def has_expired(stat: BlobStat, now_s: float) -> bool:
    at = expires_at(stat)
    return at is not None and at <= now_s


def delete_expired(storage: Storage, now_s: float) -> None:
    """Delete files and batches whose time is over; of a batch, all that is known of its job too.

    A batch that has not ended by then is cancelled, and goes at a later look. Blocking.
    """
    out = storage.out
    files, batches = (
        [stat.key for stat in out.list(folder) if has_expired(stat, now_s)] for folder in _FOLDERS
    )
    for key in files:
        out.delete(key)
    for key in batches:
        job_id = key.rpartition("batch_")[2]
        if out.stat(f"active/{job_id}") is None:
            _forget(out, job_id)
            out.delete(key)  # last, or a death in between would leave the rest for ever
        else:
            with suppress(InvalidInput):  # it has ended meanwhile
                control.cancel_job(storage, job_id)


def delete_ended(storage: Storage, now_s: float) -> None:
    """Delete the state of jobs that ended KEPT_S ago, and marks of inputs that are gone. Blocking.

    The job of a batch goes with the batch, whose status it tells.
    """
    out = storage.out
    manifests = [
        stat.key
        for stat in out.list("jobs/")
        if stat.key.endswith("/manifest.json") and now_s - stat.modified_s > KEPT_S
    ]
    for manifest in manifests:
        folder = manifest.removesuffix("manifest.json")
        job = control.read_job(out, folder.removeprefix("jobs/").rstrip("/"))
        if job is not None and job.container == "out":
            continue
        # The manifest goes last: without it a job would seem to run.
        for key in sorted((stat.key for stat in out.list(folder)), key=manifest.__eq__):
            out.delete(key)
    there = {jobs.event_key("source", stat.key, stat.etag) for stat in storage.source.list("")}
    for stat in list(out.list("events/")):
        if stat.key not in there and now_s - stat.modified_s > KEPT_S:
            out.delete(stat.key)


def _forget(out: Blobs, job_id: str) -> None:
    job = control.read_job(out, job_id)
    if job is not None:
        out.delete(jobs.event_key(job.container, job.source, job.etag))
    for stat in list(out.list(f"jobs/{job_id}/")):
        out.delete(stat.key)
