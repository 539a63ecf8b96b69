"""What storage holds of jobs: how far each one is, what ends it, and what is left when it has ended.

Does not know how inputs are read, rows get vectors or outputs are written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pyarrow as pa

from shared.bulk import control, jobs
from shared.bulk.control import FINISH
from shared.bulk.jobs import Counts, Job, State, StepMessage
from shared.bulk.observed import belongs_to
from shared.bulk.options import Container
from shared.bulk.rows import BadRow, pack_table, unpack_table
from shared.errors import BlitzError
from shared.observability.metrics import Telemetry
from shared.storage.blobs import Blobs, Storage

REPORT_S = 2.0
"""How often a process writes a job's status while it works on it."""


class Ledger:
    """Jobs as they stand in one storage. For one event loop at a time; any number of processes.

    What it remembers itself only saves looks at storage. clock: Unix seconds. Every method may raise
    what storage raises.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float], metrics: Telemetry) -> None:
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        self._reported: dict[str, float] = {}
        self._first_missing: dict[str, str] = {}

    def blobs(self, container: Container) -> Blobs:
        return self._storage.source if container == "source" else self._storage.out

    async def job(self, job_id: str) -> Job | None:
        return await asyncio.to_thread(control.read_job, self._storage.out, job_id)

    async def ended(self, job_id: str) -> bool:
        return (
            await asyncio.to_thread(self._storage.out.stat, f"jobs/{job_id}/manifest.json") is not None
        )

    async def is_cancelled(self, job_id: str) -> bool:
        return await asyncio.to_thread(self._storage.out.stat, f"jobs/{job_id}/cancel") is not None

    async def is_over(self, job: Job) -> bool:
        """Ended or cancelled; of a cancelled one the last step is sent for, as it may still be due."""
        if await self.ended(job.id):
            return True
        if await self.is_cancelled(job.id):
            await self.send(FINISH, StepMessage(job=job.id))
            return True
        return False

    async def send(self, queue: str, message: StepMessage) -> None:
        await asyncio.to_thread(self._storage.queue(queue).send, jobs.encode(message))

    async def finish_if_done(self, job_id: str) -> None:
        """Send for the last step, if every part is there."""
        if await self.all_parts(job_id):
            await self.send(FINISH, StepMessage(job=job_id))

    async def all_parts(self, job_id: str) -> bool:
        """Whether the input is split and each of its chunks has a part."""
        return await asyncio.to_thread(self._has_all_parts, job_id)

    async def missing(self, job_id: str) -> list[str]:
        """Chunks that have no part, in order."""
        return await asyncio.to_thread(self._missing, job_id)

    async def has_part(self, job_id: str, chunk: str) -> bool:
        return (
            await asyncio.to_thread(self._storage.out.stat, f"jobs/{job_id}/parts/{chunk}") is not None
        )

    async def chunk(self, job_id: str, chunk: str) -> pa.Table | None:
        """The rows of a chunk; None if the job has ended since."""
        data = await asyncio.to_thread(self._storage.out.read, f"jobs/{job_id}/chunks/{chunk}")
        return None if data is None else unpack_table(data)

    async def write_part(self, job: Job, chunk: str, table: pa.Table, failed: list[BadRow]) -> None:
        """A chunk is done: `table` has its vectors, but for the rows that are `failed`."""
        out, folder = self._storage.out, f"jobs/{job.id}"

        def write() -> bool:
            if failed:
                # A request of OpenAI Batch fails once, however many of its texts do.
                name = jobs.failed_name(chunk, len({row.line for row in failed}))
                lines = b"".join(row.to_json() + b"\n" for row in failed)
                out.create(f"{folder}/failed/{name}", lines)
            return out.create(f"{folder}/parts/{chunk}", pack_table(table))

        if await asyncio.to_thread(write):  # or another was first, and has counted it
            tokens = sum(table["tokens"].to_pylist())
            self._metrics.bulk_part_written(embedded=table.num_rows, failed=len(failed), tokens=tokens)

    async def report(self, job: Job) -> None:
        """Status for people, now and then."""
        now = self._clock()
        if now - self._reported.get(job.id, 0.0) >= REPORT_S:
            self._reported = {job.id: now}
            await self.write_status(job, None)

    async def write_status(self, job: Job, state: State | None) -> None:
        """Status for people. state: None is what storage shows."""

        def write() -> None:
            status = control.status_of(self._storage.out, job)
            if state is not None:
                status = msgspec.structs.replace(status, status=state)
            self._storage.out.write(f"jobs/{job.id}/status.json", jobs.encode(status))

        await asyncio.to_thread(write)

    async def reject(self, draft: Job, error: BlitzError) -> str:
        """An input that cannot become a job: a failed one says why, under an id of its own."""
        belongs_to(draft)
        out = self._storage.out
        await asyncio.to_thread(out.create, f"jobs/{draft.id}/job.json", jobs.encode(draft))
        await self.fail(draft, error)
        seen = jobs.event_key(draft.container, draft.source, draft.etag)
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
        out, folder = self._storage.out, f"jobs/{job.id}"
        await asyncio.to_thread(out.write, f"{folder}/status.json", jobs.encode(status))
        if await asyncio.to_thread(out.create, f"{folder}/manifest.json", jobs.encode(manifest)):
            self._metrics.bulk_job_ended("failed")
        await self.clean_up(job.id)

    async def clean_up(self, job_id: str) -> None:
        """Delete what an ended job needs no more."""
        await asyncio.to_thread(self._clean_up, job_id)

    def _clean_up(self, job_id: str) -> None:
        """The mark goes last, or this would not be repeated."""
        out = self._storage.out
        for what in ("chunks", "parts", "bad", "failed"):
            for stat in list(out.list(f"jobs/{job_id}/{what}/")):
                out.delete(stat.key)
        out.delete(f"jobs/{job_id}/final.json")
        out.delete(f"active/{job_id}")
        self._first_missing.pop(job_id, None)

    def _has_all_parts(self, job_id: str) -> bool:
        """Looks for the first part that was missing last time, so that a part costs about one look."""
        out, folder = self._storage.out, f"jobs/{job_id}"
        if out.stat(f"{folder}/split.json") is None:
            return False
        missing = self._first_missing.get(job_id)
        if missing is not None and out.stat(f"{folder}/parts/{missing}") is None:
            return False
        first = next(iter(self._missing(job_id)), None)
        if first is None:
            self._first_missing.pop(job_id, None)
            return True
        self._first_missing[job_id] = first
        return False

    def _missing(self, job_id: str) -> list[str]:
        chunks, parts = (self._names_in(f"jobs/{job_id}/{what}/") for what in ("chunks", "parts"))
        there = set(parts)
        return [name for name in chunks if name not in there]

    def _names_in(self, folder: str) -> list[str]:
        return [stat.key.removeprefix(folder) for stat in self._storage.out.list(folder)]
