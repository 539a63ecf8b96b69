"""Keeps at most IN_FLIGHT chunks of a job in the queue: each that is done sends the next.

So the first chunk of a small job does not wait behind ten thousand of a large one. Blocking. Does not
know how chunks are made or embedded.
"""

from __future__ import annotations

from collections import deque

from shared.bulk import jobs
from shared.bulk.control import queue_of
from shared.bulk.jobs import Job, StepMessage
from shared.bulk.paths import JobPaths, index_of
from shared.storage.blobs import Storage

IN_FLIGHT = 64
"""Of one job: at most so many workers embed it at once, and another job waits for so many chunks."""


class Beginning:
    """Sends chunks while they are written, in order: the first IN_FLIGHT, then each whose turn comes."""

    def __init__(self, storage: Storage, job: Job) -> None:
        self._storage = storage
        self._job = job
        self._recent: deque[str] = deque(maxlen=IN_FLIGHT)

    def written(self, chunk: str, *, is_new: bool) -> None:
        """is_new: it was not there before."""
        before = self._recent[0] if len(self._recent) == IN_FLIGHT else None
        self._recent.append(chunk)
        # Here and in send_following each writes first and looks then, so that one of the two finds the
        # other.
        if before is not None and not _is_done(self._storage, self._job, before):
            return
        # A splitter that was killed may have written the chunk and not sent the message.
        if is_new or not _is_done(self._storage, self._job, chunk):
            send_chunk(self._storage, self._job, chunk)


def send_following(storage: Storage, job: Job, done: str) -> None:
    """Send the chunk that comes IN_FLIGHT after one that is done, if it is there already."""
    paths = JobPaths(job.id)
    for stat in storage.out.list(paths.chunks_numbered(index_of(done) + IN_FLIGHT)):
        chunk = stat.key.removeprefix(paths.chunks)
        if not _is_done(storage, job, chunk):
            send_chunk(storage, job, chunk)


def send_chunk(storage: Storage, job: Job, chunk: str) -> None:
    """Queue a chunk for the workers of the job's device."""
    storage.queue(queue_of(job.device)).send(jobs.encode(StepMessage(job=job.id, chunk=chunk)))


def _is_done(storage: Storage, job: Job, chunk: str) -> bool:
    return storage.out.stat(JobPaths(job.id).embedded_chunk(chunk)) is not None
