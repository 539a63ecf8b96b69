"""The steps of a bulk job. Each is safe to repeat, and a process may be killed in any of them.

    split     input -> chunks, a message for each  (again: the same chunks under the same names)
    embed     chunk -> embedded chunk              (again: finds that it is done)
    finish    embedded chunks -> output, manifest  (again: the same bytes)
    give_up   records what failed too often as failed
    reconcile sends lost messages again

State blobs are written once, with If-None-Match; names are derived from content; and an embedded chunk's
bytes depend on nothing but the chunk and the model's revision. So messages may come twice, late or in
any order.

Does not know triggers, HTTP, or how storage and backends do their work.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from shared.backends.base import Backend
from shared.bulk import control, jobs
from shared.bulk.control import SPLIT
from shared.bulk.inputs.allowance import Limits
from shared.bulk.jobs import Job, StepMessage
from shared.bulk.ledger import REPORT_S, Ledger
from shared.bulk.observed import belongs_to, observed
from shared.bulk.options import SIDECAR
from shared.bulk.passed_over import is_input
from shared.bulk.paths import event_key
from shared.bulk.steps.cutting import Cutter
from shared.bulk.steps.embedding import Embedder
from shared.bulk.steps.finishing import finish_job
from shared.bulk.steps.relay import send_following
from shared.bulk.steps.splitting import AllCards, Splitter
from shared.bulk.steps.upkeep import Upkeep
from shared.bulk.threads import Threads
from shared.cards import Device
from shared.context import trace
from shared.errors import BlitzError, SourceChanged, Unavailable
from shared.observability import metrics
from shared.observability.metrics import Telemetry
from shared.routing.policy import Policy
from shared.storage.blobs import Storage
from shared.storage.shown_names import tell

SPLITS, FINISHES = 4, 2
"""Long steps that one process runs at once, so that a long job does not keep others waiting."""

T = TypeVar("T")


class Bulk:
    """The steps, over one storage. For one event loop at a time; any number of processes.

    backend: embeds chunks; None in a process that has no models. devices: those that have an app.
    request_tokens: what one call of the backend may hold. limits: of one job. aliases: what else models
    are called -> their names. clock: Unix seconds. metrics: where the steps are counted.

    Every method may raise what storage and backend raise, and the caller then repeats it later; and
    InvalidMessage for a body that is no message of its queue, which must not be repeated.
    """

    def __init__(
        self,
        storage: Storage,
        catalogue: AllCards,
        policy: Policy,
        *,
        backend: Backend | None,
        devices: Sequence[Device],
        request_tokens: int,
        max_inputs: int,
        limits: Limits,
        default_model: str,
        aliases: Mapping[str, str] = {},
        clock: Callable[[], float] = time.time,
        metrics: Telemetry = metrics.PROCESS,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        self._stopping = threading.Event()
        self._ledger = Ledger(storage, clock, metrics)
        self._threads = Threads(SPLITS + FINISHES)
        cutter = Cutter(
            storage,
            limits=limits,
            max_inputs=max_inputs,
            aliases=aliases,
            clock=clock,
            go_on=self._go_on,
            metrics=metrics,
        )
        self._splitter = Splitter(
            storage,
            self._ledger,
            catalogue,
            policy,
            cutter,
            self._threads,
            devices=devices,
            default_model=default_model,
            aliases=aliases,
            clock=clock,
        )
        self._embedder = Embedder(backend, request_tokens)
        self._upkeep = Upkeep(storage, self._ledger, clock)

    async def submit(self, key: str, etag: str) -> None:
        """Have a version of an input split. Called for an event, or instead of one."""
        if is_input(key):
            message = StepMessage(key=key, etag=etag)
            await self._ledger.send(SPLIT, message)

    async def notice(self, key: str, etag: str) -> None:
        """An event of a new version of an input. As `submit`, but once for each version.

        If the process is killed in between, `reconcile` finds the mark without a job's id and goes on. A
        sidecar that came after its input's job was made is logged.
        """
        if key.endswith(SIDECAR):
            await asyncio.to_thread(self._tell_if_late, key)
        if not is_input(key):
            return
        mark = event_key("source", key, etag)
        if await asyncio.to_thread(self._storage.out.create, mark, b""):
            await self.submit(key, etag)

    def _tell_if_late(self, sidecar: str) -> None:
        stat = self._storage.source.stat(sidecar.removesuffix(SIDECAR))
        found = stat and control.find_job(self._storage.out, "source", stat.key, stat.etag)
        job = found and control.made_job(self._storage.out, found)
        if job and job.sidecar is False:
            tell(
                "bulk-in",
                sidecar,
                "came after its file, whose job was made without it: put the file again to have it read",
            )

    def stop(self) -> None:
        """Long steps under way, and all later ones, raise Unavailable soon."""
        self._stopping.set()

    async def split(self, body: bytes) -> str | None:
        """A message of bulk-split: read the input, write its chunks, send a message for each.

        Returns the job's id; None if that version of the input is gone, or is no input.
        """
        with observed("split", self._metrics):
            return await self._splitter.split(jobs.read_message(body, "key"))

    async def embed(self, body: bytes) -> None:
        """A message of bulk-cpu or bulk-gpu: give a chunk's rows their vectors."""
        with observed("embed", self._metrics):
            await self._embed(jobs.read_message(body, "job", "chunk"))

    async def _embed(self, message: StepMessage) -> None:
        job = await self._ledger.job(message.job)
        if job is None:
            return
        belongs_to(job)
        if await self._ledger.is_over(job):
            return
        if not await self._ledger.is_embedded(job.id, message.chunk):
            table = await self._ledger.chunk(job.id, message.chunk)
            if table is None:
                return  # the job has ended since
            embedded = await self._unless_cancelled(job, self._embedder.embed_rows(job, table))
            if embedded is None:
                return
            await self._ledger.write_embedded(job, message.chunk, *embedded)
        await asyncio.to_thread(send_following, self._storage, job, message.chunk)
        await self._ledger.report(job)
        await self._ledger.finish_if_done(job.id)

    async def _unless_cancelled(self, job: Job, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` returns; None, and it is cancelled, soon after the job is."""
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait((task,), timeout=REPORT_S))[0]:
                with suppress(BlitzError):  # `work` goes on while storage does not answer
                    if await self._ledger.is_cancelled(job.id):
                        return None
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def give_up(self, body: bytes) -> None:
        """A message of any queue that failed too often.

        Rows of a chunk become failed rows and the job goes on; an input that could not be read or an
        output that could not be written fails the job.
        """
        with observed("give_up", self._metrics):
            await self._upkeep.give_up(body)

    async def finish(self, body: bytes) -> None:
        """A message of bulk-finish: write the output, if all chunks are done or the job is cancelled."""
        with observed("finish", self._metrics):
            job = await self._ledger.job(jobs.read_message(body, "job").job)
            if job is not None:
                belongs_to(job)
                await self._finish(job)

    async def _finish(self, job: Job) -> None:
        if await self._ledger.ended(job.id):
            await self._ledger.clean_up(job.id)  # what came after its end
            return
        cancelled = await self._ledger.is_cancelled(job.id)
        if not cancelled and not await self._ledger.all_embedded(job.id):
            return
        if job.container == "source":
            stat = await asyncio.to_thread(self._storage.source.stat, job.source)
            if (
                stat is not None and stat.etag != job.etag
            ):  # the new version's job writes the same output
                await self._ledger.fail(job, SourceChanged("the input was replaced by a newer version"))
                return
        await self._ledger.write_status(job, "finalizing")
        manifest = await self._threads.run(
            finish_job, self._storage.out, job, self._clock, self._go_on, cancelled=cancelled
        )
        if manifest is not None:  # None: another process was first, and has counted it
            counts = manifest.status.request_counts
            trace.note({}, {"rows": counts.total, "failed": counts.failed, "tokens": manifest.tokens})
            self._metrics.bulk_job_ended(manifest.status.status)
        await self._ledger.clean_up(job.id)

    async def reconcile(self) -> None:
        """Send again what was lost: events of inputs, and messages of jobs that show no progress."""
        with observed("reconcile", self._metrics):
            await self._upkeep.reconcile()

    def _go_on(self) -> None:
        """Raises Unavailable once the process is to end."""
        if self._stopping.is_set():
            raise Unavailable("the service is stopping")
