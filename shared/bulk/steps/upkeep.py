"""Keeps jobs going: gives up what failed too often, sends lost messages again, deletes what expired.

Does not know models, nor how inputs are read.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress

import msgspec

from shared.bulk import jobs
from shared.bulk.control import FINISH, SPLIT, queue_of
from shared.bulk.jobs import Job, StepMessage
from shared.bulk.ledger import Ledger
from shared.bulk.observed import belongs_to
from shared.bulk.passed_over import is_input, why_no_input
from shared.bulk.paths import ACTIVE, JobPaths, event_key
from shared.bulk.steps import relay
from shared.bulk.steps.embedding import give_up_rows
from shared.bulk.steps.expiry import delete_ended, delete_expired
from shared.errors import InvalidInput, Unavailable
from shared.storage.blobs import NO_KEY, BlobStat, Storage

MISSED_S = 120.0
"""If no splitter has taken up an input for so long after it was written, its event was lost."""
STUCK_S = 300.0
"""If a job shows no progress for so long, one of its messages was lost."""
UNNAMED = 100
"""At most so many inputs with invalid names become failed jobs in one run."""
SWEEP_S = 3600.0
"""How often a process looks for jobs that ended long ago, for which it lists all jobs."""


class Upkeep:
    """The steps that nobody waits for. clock: Unix seconds. Methods raise what storage raises."""

    def __init__(self, storage: Storage, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._ledger = ledger
        self._clock = clock
        self._swept = float("-inf")

    async def give_up(self, body: bytes) -> None:
        """A message of any queue that failed too often.

        Rows of a chunk become failed rows and the job goes on; an input that could not be read or an
        output that could not be written fails the job. Raises InvalidMessage.
        """
        message = jobs.read_message(body)
        if message.key:
            await self._give_up_input(message)
            return
        job = await self._ledger.job(message.job) if message.job else None
        if job is None or await self._ledger.ended(job.id):
            return
        belongs_to(job)
        if message.chunk:
            await self._give_up_chunk(job, message.chunk)
        else:
            await self._ledger.fail(
                job, Unavailable("the output could not be written, in several tries")
            )

    async def _give_up_input(self, message: StepMessage) -> None:
        stat = await asyncio.to_thread(self._ledger.blobs(message.container).stat, message.key)
        if stat is None or (message.etag and stat.etag != message.etag):
            if not message.job:
                return
            stat = BlobStat(message.key, 0, message.etag, 0.0, {})
        error = Unavailable("the input could not be read, in several tries")
        mark = event_key(message.container, stat.key, stat.etag)
        signed = await asyncio.to_thread(self._storage.out.read, mark) or b""
        id_ = message.job or signed.decode()
        job = await self._ledger.job(id_) if id_ else None
        if job is None:
            await self._ledger.reject(jobs.draft_job(message, stat, self._clock()), error)
        elif not await self._ledger.ended(job.id):
            belongs_to(job)
            await self._ledger.fail(job, error)

    async def _give_up_chunk(self, job: Job, chunk: str) -> None:
        table = await self._ledger.chunk(job.id, chunk)
        if table is None:
            return
        if not await self._ledger.is_embedded(job.id, chunk):
            await self._ledger.write_embedded(job, chunk, *give_up_rows(job, table))
        await asyncio.to_thread(relay.send_following, self._storage, job, chunk)
        await self._ledger.finish_if_done(job.id)

    async def reconcile(self) -> None:
        """Send again what was lost: events of inputs, and messages of jobs that show no progress.

        And delete what has expired.
        """
        now = self._clock()
        missed = await asyncio.to_thread(self._missed_inputs, now)
        # With as many messages as inputs nothing was lost: the splitters are behind.
        if await asyncio.to_thread(self._storage.queue(SPLIT).depth) < len(missed):
            for stat in missed:
                message = StepMessage(container="source", key=stat.key, etag=stat.etag)
                await self._ledger.send(SPLIT, message)
        await self._reject_unnamed(now)
        for active in await asyncio.to_thread(lambda: list(self._storage.out.list(ACTIVE))):
            job = await self._ledger.job(active.key.removeprefix(ACTIVE))
            if job is not None:
                await self._unstick(job, now)
            elif active.size and now - active.modified_s > MISSED_S:
                await self._begin_again(active.key)
        await asyncio.to_thread(delete_expired, self._storage, now)
        if now - self._swept >= SWEEP_S:
            await asyncio.to_thread(delete_ended, self._storage, now)
            self._swept = now

    async def _reject_unnamed(self, now: float) -> None:
        """Inputs whose names are no valid keys become failed jobs, so that somebody sees them."""
        found = await asyncio.to_thread(self._unnamed)
        for stat in found:
            message = StepMessage(container="source", key=stat.key, etag=stat.etag)
            await self._ledger.reject(jobs.draft_job(message, stat, now), InvalidInput(NO_KEY))

    def _unnamed(self) -> list[BlobStat]:
        """At most UNNAMED of those that have no job yet."""
        new = (
            stat
            for stat in self._storage.source.unnamed()
            if why_no_input(stat.key) is None
            and self._storage.out.stat(event_key("source", stat.key, stat.etag)) is None
        )
        return list(itertools.islice(new, UNNAMED))

    async def _begin_again(self, active: str) -> None:
        message = await asyncio.to_thread(self._storage.out.read, active)
        with suppress(msgspec.DecodeError):  # a blob of somebody else must not stop this for all jobs
            await self._ledger.send(SPLIT, jobs.decode(message or b"", StepMessage))

    def _missed_inputs(self, now: float) -> list[BlobStat]:
        """Versions of inputs that no splitter has signed, long after they came or were noticed."""
        missed = []
        for stat in self._storage.source.list(""):
            if is_input(stat.key) and now - stat.modified_s > MISSED_S:
                mark = self._storage.out.stat(event_key("source", stat.key, stat.etag))
                if mark is None or (not mark.size and now - mark.modified_s > MISSED_S):
                    missed.append(stat)
        return missed

    async def _unstick(self, job: Job, now: float) -> None:
        if await self._ledger.ended(job.id):
            await self._ledger.clean_up(job.id)  # it died between its end and this
            return
        out, paths = self._storage.out, JobPaths(job.id)
        status = await asyncio.to_thread(out.stat, paths.status)
        if now - (status.modified_s if status else job.created) < STUCK_S:
            return
        if await self._ledger.is_cancelled(job.id):
            await self._ledger.send(FINISH, StepMessage(job=job.id))
        elif await asyncio.to_thread(out.stat, paths.split) is None:
            id_ = job.id if job.container == "out" else ""
            message = StepMessage(id_, container=job.container, key=job.source, etag=job.etag)
            await self._ledger.send(SPLIT, message)
        else:
            missing = (await self._ledger.missing(job.id))[: relay.IN_FLIGHT]
            queue = self._storage.queue(queue_of(job.device))
            # A job that waits behind others has lost no message.
            if await asyncio.to_thread(queue.depth) < len(missing):
                for chunk in missing:
                    await asyncio.to_thread(relay.send_chunk, self._storage, job, chunk)
            await self._ledger.finish_if_done(job.id)
        await self._ledger.write_status(job, "in_progress")  # the next look is STUCK_S from now
