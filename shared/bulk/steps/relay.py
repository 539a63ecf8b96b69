"""Which chunks of a job are in their queue: so many at a time, and each that is done sends for another.

So a job of ten thousand chunks is not ten thousand messages before the one of the next job: the queue
has the chunks of all jobs in turn. Blocking. Does not know how chunks are made or embedded.
"""

from __future__ import annotations

from collections import deque

from shared.bulk import jobs
from shared.bulk.control import queue_of
from shared.bulk.jobs import Job, StepMessage
from shared.storage.blobs import Storage

IN_FLIGHT = 64
"""Of one job. So many workers can be busy with it, and so many chunks are before another job's first."""


class Beginning:
    """Sends for chunks as they are written, in order: the first ones, and those whose turn has come."""

    def __init__(self, storage: Storage, job: Job) -> None:
        self._storage = storage
        self._job = job
        self._recent: deque[str] = deque(maxlen=IN_FLIGHT)

    def written(self, chunk: str, *, is_new: bool) -> None:
        """is_new: it was not there before."""
        before = self._recent[0] if len(self._recent) == IN_FLIGHT else None
        self._recent.append(chunk)
        # Here and in send_following one looks after one has written: one of both finds the other.
        if before is not None and not _is_done(self._storage, self._job, before):
            return
        # A splitter that was killed may have written the chunk and not sent the message.
        if is_new or not _is_done(self._storage, self._job, chunk):
            send_chunk(self._storage, self._job, chunk)


def send_following(storage: Storage, job: Job, done: str) -> None:
    """Send for the chunk that comes IN_FLIGHT after one that is done, if it is there already."""
    folder = f"jobs/{job.id}/chunks/"
    for stat in storage.out.list(f"{folder}{jobs.index_of(done) + IN_FLIGHT:06d}-"):
        chunk = stat.key.removeprefix(folder)
        if not _is_done(storage, job, chunk):
            send_chunk(storage, job, chunk)


def send_chunk(storage: Storage, job: Job, chunk: str) -> None:
    storage.queue(queue_of(job.device)).send(jobs.encode(StepMessage(job=job.id, chunk=chunk)))


def _is_done(storage: Storage, job: Job, chunk: str) -> bool:
    return storage.out.stat(f"jobs/{job.id}/parts/{chunk}") is not None
