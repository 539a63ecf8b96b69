"""The state of jobs in storage: reads it, writes it, and deletes what an ended job no longer needs.

Does not know how inputs are read, rows embedded or outputs written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from shared.bulk import arrow as pa
from shared.bulk import control, jobs
from shared.bulk.control import FINISH
from shared.bulk.jobs import Counts, Job, State, StepMessage
from shared.bulk.observed import belongs_to
from shared.bulk.options import Container
from shared.bulk.paths import JobPaths, event_key
from shared.bulk.rows import BadRow, pack_table, unpack_table
from shared.errors import BlitzError
from shared.observability.metrics import Telemetry
from shared.storage.blobs import Blobs, Storage

REPORT_S = 2.0
"""How often a process writes a job's status while it works on it."""


class Ledger:
    """Jobs as they stand in one storage. For one event loop at a time; any number of processes.

    What it remembers only saves calls of storage. clock: Unix seconds. Every method may raise
    what storage raises.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float], metrics: Telemetry) -> None:
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        self._reported: dict[str, float] = {}
        self._first_missing: dict[str, str] = {}

    def blobs(self, container: Container) -> Blobs:
        """The container of that name."""
        return self._storage.source if container == "source" else self._storage.out

    async def job(self, job_id: str) -> Job | None:
        """None if there is no such job."""
        return await asyncio.to_thread(control.read_job, self._storage.out, job_id)

    async def ended(self, job_id: str) -> bool:
        """Whether the job has its manifest, which is written last."""
        return await asyncio.to_thread(self._storage.out.stat, JobPaths(job_id).manifest) is not None

    async def is_cancelled(self, job_id: str) -> bool:
        """Whether somebody asked to cancel it."""
        return await asyncio.to_thread(self._storage.out.stat, JobPaths(job_id).cancel) is not None

    async def is_over(self, job: Job) -> bool:
        """Ended or cancelled. For a cancelled one it sends the message of the last step again."""
        if await self.ended(job.id):
            return True
        if await self.is_cancelled(job.id):
            await self.send(FINISH, StepMessage(job=job.id))
            return True
        return False

    async def send(self, queue: str, message: StepMessage) -> None:
        """Queue a step."""
        await asyncio.to_thread(self._storage.queue(queue).send, jobs.encode(message))

    async def finish_if_done(self, job_id: str) -> None:
        """Send the message of the last step, if every chunk is embedded."""
        if await self.all_embedded(job_id):
            await self.send(FINISH, StepMessage(job=job_id))

    async def all_embedded(self, job_id: str) -> bool:
        """Whether the input is split and each of its chunks is embedded."""
        return await asyncio.to_thread(self._are_all_embedded, job_id)

    async def missing(self, job_id: str) -> list[str]:
        """Chunks that are not embedded yet, in order."""
        return await asyncio.to_thread(self._missing, job_id)

    async def is_embedded(self, job_id: str, chunk: str) -> bool:
        """Whether the chunk's vectors are written."""
        key = JobPaths(job_id).embedded_chunk(chunk)
        return await asyncio.to_thread(self._storage.out.stat, key) is not None

    async def chunk(self, job_id: str, chunk: str) -> pa.Table | None:
        """The rows of a chunk; None if the job has ended since."""
        data = await asyncio.to_thread(self._storage.out.read, JobPaths(job_id).chunk(chunk))
        return None if data is None else unpack_table(data)

    async def write_embedded(self, job: Job, chunk: str, table: pa.Table, failed: list[BadRow]) -> None:
        """Record a chunk as done. table: its rows with their vectors, without those that `failed`."""
        out, paths = self._storage.out, JobPaths(job.id)

        def write() -> bool:
            if failed:
                # A request of OpenAI Batch fails once, however many of its texts do.
                key = paths.failed_rows(chunk, len({row.line for row in failed}))
                lines = b"".join(row.to_json() + b"\n" for row in failed)
                out.create(key, lines)
            return out.create(paths.embedded_chunk(chunk), pack_table(table))

        if await asyncio.to_thread(write):  # False: another worker was first, and has counted it
            tokens = sum(table["tokens"].to_pylist())
            self._metrics.bulk_chunk_embedded(embedded=table.num_rows, failed=len(failed), tokens=tokens)

    async def report(self, job: Job) -> None:
        """Write the status for people, every REPORT_S at most."""
        now = self._clock()
        if now - self._reported.get(job.id, 0.0) >= REPORT_S:
            self._reported = {job.id: now}
            await self.write_status(job, None)

    async def write_status(self, job: Job, state: State | None) -> None:
        """Write the status for people. state: None derives it from the state blobs."""

        def write() -> None:
            status = control.status_of(self._storage.out, job)
            if state is not None:
                status = msgspec.structs.replace(status, status=state)
            self._storage.out.write(JobPaths(job.id).status, jobs.encode(status))

        await asyncio.to_thread(write)

    async def reject(self, draft: Job, error: BlitzError) -> str:
        """Record an input that cannot be embedded as a failed job with the reason; returns its id."""
        belongs_to(draft)
        out = self._storage.out
        await asyncio.to_thread(out.create, JobPaths(draft.id).job, jobs.encode(draft))
        await self.fail(draft, error)
        seen = event_key(draft.container, draft.source, draft.etag)
        await asyncio.to_thread(out.write, seen, draft.id.encode())
        return draft.id

    async def fail(self, job: Job, error: BlitzError) -> None:
        """End a job as a whole, with the reason."""
        status = msgspec.structs.replace(
            jobs.status_of(job, "failed", Counts()),
            ended_at=int(self._clock()),
            error=error.message,
            code=error.code,
            field=error.field,
        )
        manifest = jobs.JobManifest(job, status, (), 0, self._clock() - job.created)
        out, paths = self._storage.out, JobPaths(job.id)
        await asyncio.to_thread(out.write, paths.status, jobs.encode(status))
        if await asyncio.to_thread(out.create, paths.manifest, jobs.encode(manifest)):
            self._metrics.bulk_job_ended("failed")
        await self.clean_up(job.id)

    async def clean_up(self, job_id: str) -> None:
        """Delete what an ended job no longer needs."""
        await asyncio.to_thread(self._clean_up, job_id)

    def _clean_up(self, job_id: str) -> None:
        """The mark is deleted last: while it is there, this is repeated."""
        out, paths = self._storage.out, JobPaths(job_id)
        for prefix in (paths.chunks, paths.embedded, paths.bad, paths.failed):
            for stat in list(out.list(prefix)):
                out.delete(stat.key)
        out.delete(paths.final)
        out.delete(paths.active)
        self._first_missing.pop(job_id, None)

    def _are_all_embedded(self, job_id: str) -> bool:
        """Looks first for the chunk that was missing last time, so that a chunk costs about one look."""
        out, paths = self._storage.out, JobPaths(job_id)
        if out.stat(paths.split) is None:
            return False
        missing = self._first_missing.get(job_id)
        if missing is not None and out.stat(paths.embedded_chunk(missing)) is None:
            return False
        first = next(iter(self._missing(job_id)), None)
        if first is None:
            self._first_missing.pop(job_id, None)
            return True
        self._first_missing[job_id] = first
        return False

    def _missing(self, job_id: str) -> list[str]:
        paths = JobPaths(job_id)
        done = set(self._names_in(paths.embedded))
        return [name for name in self._names_in(paths.chunks) if name not in done]

    def _names_in(self, folder: str) -> list[str]:
        return [stat.key.removeprefix(folder) for stat in self._storage.out.list(folder)]
