"""Blob in, vectors out, whatever dies on the way: the steps of a bulk job, each safe to repeat.

    split     input -> chunks, a message for each  (killed: again, the same chunks, the same names)
    embed     chunk -> part                        (twice: the second finds the part)
    finish    parts -> output, manifest            (twice: the same bytes)
    give_up   what failed too often is recorded as failed
    reconcile what was lost on the way is sent again

State is created with If-None-Match, names are derived from content, and a part's bytes depend on
nothing but its chunk and the model's revision. So events may come twice, late or in any order.

Does not know triggers, HTTP, or how storage and backends do their work.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec
import numpy as np
import pyarrow as pa

from shared.backend_client import Backend
from shared.bulk import control, jobs
from shared.bulk.control import FINISH, SPLIT
from shared.bulk.finishing import finish_job
from shared.bulk.formats.source import Source
from shared.bulk.jobs import Container, Job, Message, Options, Split, State, Status
from shared.bulk.reading import HEAD_BYTES, Format, ReadOptions, detect_format, read_rows
from shared.bulk.rows import BadRow, Row, cut_chunks, embedded, pack_table, unpack_table
from shared.bulk.storage import Blobs, BlobStat, Storage
from shared.contracts import EmbedRequest, EmbedResult, ModelCard
from shared.errors import BlitzError, InvalidInput, Misconfigured, Overloaded, SourceChanged, Unavailable
from shared.manifest import Device, pinned_name
from shared.routing import BackendView, Policy, Work

MISSED_S = 120.0
"""An input that nobody has seen for so long after it was written has lost its event."""
STUCK_S = 300.0
"""A job that shows no progress for so long has lost a message."""
REPORT_S = 2.0
"""How often a process writes a job's status while it works on it."""


BYTES_PER_TEXT = 400
"""A guess, for where a job should go; nothing else depends on it."""


def queue_of(device: Device) -> str:
    """The queue that the workers of a device's app read."""
    return f"bulk-{device}"


class Cards(Protocol):
    """What is needed of shared.catalogue.Catalogue."""

    async def cards(self) -> list[ModelCard]:
        """A card for each model and device."""


class Bulk:
    """The steps, over one storage. For one event loop at a time; any number of processes.

    backend: embeds chunks; None in a process that has no models. devices: those that have an app.
    request_tokens: what one call of the backend may hold. clock: Unix seconds.

    Every method may raise what storage and backend raise: whoever calls repeats it later.
    """

    def __init__(
        self,
        storage: Storage,
        catalogue: Cards,
        policy: Policy,
        *,
        backend: Backend | None,
        devices: Sequence[Device],
        request_tokens: int,
        max_inputs: int,
        default_model: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage = storage
        self._catalogue = catalogue
        self._policy = policy
        self._backend = backend
        self._devices = devices
        self._request_tokens = request_tokens
        self._max_inputs = max_inputs
        self._default_model = default_model
        self._clock = clock
        self._stopping = threading.Event()
        self._reported: dict[str, float] = {}
        self._first_missing: dict[str, str] = {}

    async def submit(self, container: Container, key: str, etag: str) -> None:
        """A version of an input is there: have it split. Called for an event, or instead of one."""
        if container == "out" or jobs.is_input(key):
            message = Message(container=container, key=key, etag=etag)
            await self._send(SPLIT, message)

    async def notice(self, container: Container, key: str, etag: str) -> None:
        """An event: a version of an input is there. As `submit`, but once for each version.

        Nothing is lost if this dies in between: a mark that no splitter has signed is `reconcile`'s.
        """
        if not jobs.is_input(key):
            return
        mark = jobs.event_key(container, key, etag)
        if await asyncio.to_thread(self._storage.out.create, mark, b""):
            await self.submit(container, key, etag)

    def stop(self) -> None:
        """Long steps under way raise Unavailable soon, and so does every later one."""
        self._stopping.set()

    async def split(self, body: bytes) -> str | None:
        """A message of bulk-split: read the input, write its chunks, send a message for each.

        Returns the job's id; None if that version of the input is gone, or is no input.
        """
        message = jobs.decode(body, Message)
        blobs = self._blobs(message.container)
        stat = await asyncio.to_thread(blobs.stat, message.key)
        if stat is None or (message.etag and stat.etag != message.etag):
            if not message.job:
                return None  # a newer version has an event of its own
            gone = BlobStat(message.key, 0, message.etag, 0.0, {})
            return await self._reject(message, gone, SourceChanged("the input was changed or deleted"))
        try:
            job = await self._create(message, stat, blobs)
        except (InvalidInput, SourceChanged) as error:
            return await self._reject(message, stat, error)
        if await self._is_over(job):
            return job.id
        try:
            await asyncio.to_thread(self._write_chunks, job, blobs)
        except (InvalidInput, SourceChanged) as error:
            await self._fail(job, error)
            return job.id
        if await self._ended(job.id):
            await asyncio.to_thread(self._clean_up, job.id)  # cancelled, and chunks came after its end
        await self._finish_if_done(job.id)
        return job.id

    async def embed(self, body: bytes) -> None:
        """A message of bulk-cpu or bulk-gpu: give a chunk's rows their vectors."""
        message = jobs.decode(body, Message)
        job = await self._job(message.job)
        if job is None or await self._is_over(job):
            return
        out, folder = self._storage.out, f"jobs/{job.id}"
        part_key = f"{folder}/parts/{message.chunk}"
        if await asyncio.to_thread(out.stat, part_key) is None:
            data = await asyncio.to_thread(out.read, f"{folder}/chunks/{message.chunk}")
            if data is None:
                return  # the job has ended since
            table, refused = await self._embed_rows(job, unpack_table(data))
            if refused:
                await asyncio.to_thread(self._write_failed, job, message.chunk, refused)
            await asyncio.to_thread(out.create, part_key, await asyncio.to_thread(pack_table, table))
        await self._report(job)
        await self._finish_if_done(job.id)

    async def give_up(self, body: bytes) -> None:
        """A message of any queue that failed too often.

        Rows of a chunk are failed ones and the job goes on; an input that could not be read or an output
        that could not be written fails the job. What is no message of ours is dropped.
        """
        try:
            message = jobs.decode(body, Message)
        except msgspec.DecodeError:
            return
        if message.key:
            await self._give_up_input(message)
            return
        job = await self._job(message.job)
        if job is None or await self._ended(job.id):
            return
        if message.chunk:
            await self._give_up_chunk(job, message.chunk)
        else:
            await self._fail(job, Unavailable("the output could not be written, in several tries"))

    async def _give_up_input(self, message: Message) -> None:
        stat = await asyncio.to_thread(self._blobs(message.container).stat, message.key)
        if stat is None or (message.etag and stat.etag != message.etag):
            if not message.job:
                return
            stat = BlobStat(message.key, 0, message.etag, 0.0, {})
        error = Unavailable("the input could not be read, in several tries")
        mark = jobs.event_key(message.container, stat.key, stat.etag)
        signed = await asyncio.to_thread(self._storage.out.read, mark) or b""
        id_ = message.job or signed.decode()
        job = await self._job(id_) if id_ else None
        if job is None:
            await self._reject(message, stat, error)
        elif not await self._ended(job.id):
            await self._fail(job, error)

    async def _give_up_chunk(self, job: Job, chunk: str) -> None:
        out, folder = self._storage.out, f"jobs/{job.id}"
        data = await asyncio.to_thread(out.read, f"{folder}/chunks/{chunk}")
        part = await asyncio.to_thread(out.stat, f"{folder}/parts/{chunk}")
        if data is None or part is not None:
            return
        table = unpack_table(data)
        why = "the rows of this chunk could not be embedded, in several tries"
        failed = [_failed(row, "embedding_failed", why) for row in _names(table)]
        await asyncio.to_thread(self._write_failed, job, chunk, failed)
        empty = embedded(table.slice(0, 0), np.empty((0, job.dimensions), np.float32), [])
        await asyncio.to_thread(out.create, f"{folder}/parts/{chunk}", pack_table(empty))
        await self._finish_if_done(job.id)

    async def finish(self, body: bytes) -> None:
        """A message of bulk-finish: write the output, if every part is there or the job is cancelled."""
        job = await self._job(jobs.decode(body, Message).job)
        if job is None:
            return
        if await self._ended(job.id):
            await asyncio.to_thread(self._clean_up, job.id)  # what came after its end
            return
        cancelled = await self._is_cancelled(job.id)
        if not cancelled and not await self._all_parts(job.id):
            return
        if job.container == "source":
            stat = await asyncio.to_thread(self._storage.source.stat, job.source)
            if stat is not None and stat.etag != job.etag:  # its job writes, or wrote, the same output
                await self._fail(job, SourceChanged("the input was replaced by a newer version"))
                return
        await self._write_status(job, "finalizing")
        now, out = self._clock(), self._storage.out
        await asyncio.to_thread(finish_job, out, job, now, self._go_on, cancelled=cancelled)
        await asyncio.to_thread(self._clean_up, job.id)

    async def cancel(self, job_id: str) -> None:
        """End a job: chunks not begun are dropped, what has vectors is in the output."""
        await asyncio.to_thread(control.cancel_job, self._storage, job_id)

    async def status(self, job_id: str) -> Status | None:
        """What is true now, from what is there; None if there is no such job."""
        return await asyncio.to_thread(control.read_status, self._storage.out, job_id)

    async def reconcile(self) -> None:
        """Send again what was lost: events of inputs, and messages of jobs that show no progress."""
        now = self._clock()
        missed = await asyncio.to_thread(self._missed_inputs, now)
        # As many messages as there are inputs: nothing was lost, the splitters are behind.
        if await asyncio.to_thread(self._storage.queue(SPLIT).depth) < len(missed):
            for stat in missed:
                await self.submit("source", stat.key, stat.etag)
        for active in await asyncio.to_thread(lambda: list(self._storage.out.list("active/"))):
            job = await self._job(active.key.removeprefix("active/"))
            if job is not None:
                await self._unstick(job, now)
            elif active.size and now - active.modified_s > MISSED_S:
                await self._begin_again(active.key)

    async def _begin_again(self, active: str) -> None:
        message = await asyncio.to_thread(self._storage.out.read, active)
        if message:
            await self._send(SPLIT, jobs.decode(message, Message))

    def _missed_inputs(self, now: float) -> list[BlobStat]:
        """Versions of inputs that no splitter has signed, long after they came or were noticed."""
        missed = []
        for stat in self._storage.source.list(""):
            if jobs.is_input(stat.key) and now - stat.modified_s > MISSED_S:
                mark = self._storage.out.stat(jobs.event_key("source", stat.key, stat.etag))
                if mark is None or (not mark.size and now - mark.modified_s > MISSED_S):
                    missed.append(stat)
        return missed

    async def _unstick(self, job: Job, now: float) -> None:
        if await self._ended(job.id):
            await asyncio.to_thread(self._clean_up, job.id)  # it died between its end and this
            return
        out, folder = self._storage.out, f"jobs/{job.id}"
        status = await asyncio.to_thread(out.stat, f"{folder}/status.json")
        if now - (status.modified_s if status else job.created) < STUCK_S:
            return
        if await self._is_cancelled(job.id):
            await self._send(FINISH, Message(job=job.id))
        elif await asyncio.to_thread(out.stat, f"{folder}/split.json") is None:
            id_ = job.id if job.container == "out" else ""
            message = Message(id_, container=job.container, key=job.source, etag=job.etag)
            await self._send(SPLIT, message)
        else:
            missing = await asyncio.to_thread(self._missing, job.id)
            queue = self._storage.queue(queue_of(job.device))
            # A job that waits behind others has lost nothing.
            if await asyncio.to_thread(queue.depth) < len(missing):
                for chunk in missing:
                    await self._send(queue_of(job.device), Message(job=job.id, chunk=chunk))
            await self._finish_if_done(job.id)
        await self._write_status(job, "in_progress")  # the next look is STUCK_S from now

    async def _create(self, message: Message, stat: BlobStat, blobs: Blobs) -> Job:
        """The job of this version of an input, created if it is new.

        Raises InvalidInput and SourceChanged.
        """
        container = message.container
        sidecar = await asyncio.to_thread(blobs.read, stat.key + jobs.SIDECAR)
        options = jobs.options_of(container, stat, sidecar)
        head = await asyncio.to_thread(blobs.read_range, stat.key, 0, HEAD_BYTES, etag=stat.etag)
        form = detect_format(stat.key, head, ReadOptions(kind=options.kind))
        if not options.model:
            model = await asyncio.to_thread(self._model_in, stat, blobs, form)
            options = msgspec.structs.replace(options, model=model)
        card = _card_for(options, await self._catalogue.cards(), self._choose(options, stat.size))
        job = Job(
            id=message.job or jobs.job_id(container, stat, options, card.revision),
            container=container,
            source=stat.key,
            etag=stat.etag,
            size=stat.size,
            options=options,
            revision=card.revision,
            dimensions=options.dimensions or card.dimensions,
            device=card.device,
            created=int(self._clock()),
            kind=form.kind,
            compression=form.compression,
        )
        out = self._storage.out
        if not await asyncio.to_thread(out.create, f"jobs/{job.id}/job.json", jobs.encode(job)):
            job = await self._job(job.id) or job
        if not await self._ended(job.id):
            await asyncio.to_thread(out.create, f"active/{job.id}", b"")
            await self._write_status(job, "validating")
        seen = jobs.event_key(container, stat.key, stat.etag)
        await asyncio.to_thread(out.write, seen, job.id.encode())
        return job

    def _model_in(self, stat: BlobStat, blobs: Blobs, form: Format) -> str:
        """What an OpenAI Batch file's first request names; else the default. Raises InvalidInput."""
        bad: BadRow | None = None
        if form.kind == "batch":
            options = ReadOptions(max_inputs=self._max_inputs)
            for row in read_rows(_source(stat, blobs), form, options):
                if isinstance(row, Row):
                    bad = None
                    if isinstance(row.fields, str) and (named := _model_named(row.fields)):
                        return named
                    break
                bad = bad or row
        if bad is not None:
            raise InvalidInput(f"no line is a valid request; line {bad.line}: {bad.message}")
        if not self._default_model:
            raise jobs.no_model(stat.key)
        return self._default_model

    def _choose(self, options: Options, size: int) -> list[Device]:
        """Where the chunks should go, best first."""
        if options.backend != "auto":
            return [options.backend]
        work = Work(
            texts=max(1, size // BYTES_PER_TEXT),
            tokens=size // 4,
            cross_encoder=False,
            size_bytes=dict.fromkeys(self._devices, 0),
        )
        idle = BackendView(available=True, warm=True, waking_s=None, queued_tokens=0)
        return list(self._policy(work, dict.fromkeys(self._devices, idle)).devices)

    def _write_chunks(self, job: Job, blobs: Blobs) -> None:
        """All chunks, and split.json; stops early if the job is cancelled."""
        out, folder = self._storage.out, f"jobs/{job.id}"
        queue = self._storage.queue(queue_of(job.device))
        source = _source(BlobStat(job.source, job.size, job.etag, 0.0, {}), blobs)
        options = ReadOptions(
            kind=job.options.kind,
            text_column=job.options.text_column,
            id_column=job.options.id_column,
            model=job.options.model if job.kind == "batch" else None,
            max_dimensions=job.dimensions,
            max_inputs=self._max_inputs,
        )
        rows = read_rows(source, Format(job.kind, job.compression), options)
        chunks = parts = good = bad = 0
        looked = self._clock()
        for chunk in cut_chunks(rows):
            self._go_on()
            begun = _begun(chunk.table)
            chunks, good, bad = chunks + 1, good + begun, bad + len(chunk.bad)
            if chunk.bad:
                out.create(f"{folder}/bad/{chunk.index:06d}.jsonl", chunk.bad_to_json())
            if chunk.table.num_rows:
                parts += 1
                name = jobs.chunk_name(chunk.index, begun)
                # A splitter that was killed may have written the chunk and not sent the message.
                if out.create(f"{folder}/chunks/{name}", chunk.to_arrow()) or not out.stat(
                    f"{folder}/parts/{name}"
                ):
                    queue.send(jobs.encode(Message(job=job.id, chunk=name)))
            if self._clock() - looked > REPORT_S:
                looked = self._clock()
                out.write(f"{folder}/status.json", jobs.encode(control.status_of(out, job)))
                if out.stat(f"{folder}/cancel"):
                    return
        out.create(f"{folder}/split.json", jobs.encode(Split(chunks, parts, good + bad, bad)))

    def _go_on(self) -> None:
        """Raises Unavailable once the process is to end."""
        if self._stopping.is_set():
            raise Unavailable("the service is stopping")

    async def _embed_rows(self, job: Job, table: pa.Table) -> tuple[pa.Table, list[BadRow]]:
        """The rows with their vectors; those that the model refuses, with the reason."""
        texts = table["text"].to_pylist()
        rows = list(range(len(texts)))
        refused: dict[int, str] = {}
        results: list[EmbedResult] = []
        kept: list[int] = []
        for slice_ in _slices(texts, self._request_tokens):
            asked = list(slice_)
            while asked:
                try:
                    results.append(await self._ask(job, [texts[row] for row in asked]))
                    kept += asked
                    break
                except InvalidInput as error:
                    at = _ITEM.fullmatch(error.field or "")
                    if at is None or int(at[1]) >= len(asked):
                        raise
                    refused[asked.pop(int(at[1]))] = error.message
        vectors = np.concatenate(
            [np.empty((0, job.dimensions), np.float32), *(r.vectors for r in results)]
        )
        tokens = [count for result in results for count in result.token_counts]
        chosen = table if len(kept) == len(rows) else table.take(kept)
        names = list(_names(table)) if refused else []
        bad = [_failed(names[row], "input_refused", why) for row, why in sorted(refused.items())]
        return embedded(chosen, vectors, tokens), bad

    async def _ask(self, job: Job, texts: list[str]) -> EmbedResult:
        """Waits while the backend has too much to do: that is no reason to count a try."""
        if self._backend is None:
            raise Misconfigured("this process has no models to embed with")
        pinned = pinned_name(job.options.model, job.revision)
        request = EmbedRequest(pinned, tuple(texts), dimensions=job.options.dimensions)
        while True:
            try:
                return await self._backend.embed(request)
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_s or 1.0)

    async def _finish_if_done(self, job_id: str) -> None:
        if await self._all_parts(job_id):
            await self._send(FINISH, Message(job=job_id))

    async def _all_parts(self, job_id: str) -> bool:
        return await asyncio.to_thread(self._has_all_parts, job_id)

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
        """Chunks that have no part, in order."""
        chunks, parts = (self._names_in(f"jobs/{job_id}/{what}/") for what in ("chunks", "parts"))
        there = set(parts)
        return [name for name in chunks if name not in there]

    def _names_in(self, folder: str) -> list[str]:
        return [stat.key.removeprefix(folder) for stat in self._storage.out.list(folder)]

    async def _report(self, job: Job) -> None:
        """Status for people, now and then."""
        now = self._clock()
        if now - self._reported.get(job.id, 0.0) >= REPORT_S:
            self._reported = {job.id: now}
            await self._write_status(job, None)

    async def _write_status(self, job: Job, state: State | None) -> None:
        def write() -> None:
            status = control.status_of(self._storage.out, job)
            if state is not None:
                status = msgspec.structs.replace(status, status=state)
            self._storage.out.write(f"jobs/{job.id}/status.json", jobs.encode(status))

        await asyncio.to_thread(write)

    async def _reject(self, message: Message, stat: BlobStat, error: BlitzError) -> str:
        """An input that cannot become a job: a failed one says why, under an id of its own."""
        container = message.container
        id_ = message.job or jobs.job_id(container, stat, Options(), "")
        job = Job(
            id=id_,
            container=container,
            source=stat.key,
            etag=stat.etag,
            size=stat.size,
            options=Options(),
            revision="",
            dimensions=0,
            device="cpu",
            created=int(self._clock()),
            kind="jsonl",
        )
        out = self._storage.out
        await asyncio.to_thread(out.create, f"jobs/{id_}/job.json", jobs.encode(job))
        await self._fail(job, error)
        await asyncio.to_thread(out.write, jobs.event_key(container, stat.key, stat.etag), id_.encode())
        return id_

    async def _fail(self, job: Job, error: BlitzError) -> None:
        """End a job as a whole, with the reason."""
        status = Status(
            job.id,
            "failed",
            job.source,
            job.options.model,
            job.created,
            ended_at=int(self._clock()),
            error=error.message,
            code=error.code,
            field=error.field,
        )
        manifest = jobs.Manifest(job, status, (), 0, self._clock() - job.created)
        out, folder = self._storage.out, f"jobs/{job.id}"
        await asyncio.to_thread(out.write, f"{folder}/status.json", jobs.encode(status))
        await asyncio.to_thread(out.create, f"{folder}/manifest.json", jobs.encode(manifest))
        await asyncio.to_thread(self._clean_up, job.id)

    def _clean_up(self, job_id: str) -> None:
        """Delete what an ended job needs no more; the mark last, or this would not be repeated."""
        out = self._storage.out
        for what in ("chunks", "parts", "bad", "failed"):
            for stat in list(out.list(f"jobs/{job_id}/{what}/")):
                out.delete(stat.key)
        out.delete(f"jobs/{job_id}/final.json")
        out.delete(f"active/{job_id}")
        self._first_missing.pop(job_id, None)

    async def _job(self, job_id: str) -> Job | None:
        data = await asyncio.to_thread(self._storage.out.read, f"jobs/{job_id}/job.json")
        return None if data is None else jobs.decode(data, Job)

    async def _ended(self, job_id: str) -> bool:
        return (
            await asyncio.to_thread(self._storage.out.stat, f"jobs/{job_id}/manifest.json") is not None
        )

    async def _is_cancelled(self, job_id: str) -> bool:
        return await asyncio.to_thread(self._storage.out.stat, f"jobs/{job_id}/cancel") is not None

    async def _is_over(self, job: Job) -> bool:
        """Ended or cancelled; then its last steps may still be due."""
        if await self._ended(job.id):
            return True
        if await self._is_cancelled(job.id):
            await self._send(FINISH, Message(job=job.id))
            return True
        return False

    async def _send(self, queue: str, message: Message) -> None:
        await asyncio.to_thread(self._storage.queue(queue).send, jobs.encode(message))

    def _blobs(self, container: Container) -> Blobs:
        return self._storage.source if container == "source" else self._storage.out

    def _write_failed(self, job: Job, chunk: str, bad: list[BadRow]) -> None:
        """A request of OpenAI Batch fails once, however many of its texts do."""
        lines = b"".join(row.to_json() + b"\n" for row in bad)
        name = jobs.failed_name(chunk, len({row.line for row in bad}))
        self._storage.out.create(f"jobs/{job.id}/failed/{name}", lines)


_ITEM = re.compile(r"input\[(\d+)\]")


def _card_for(options: Options, cards: list[ModelCard], devices: list[Device]) -> ModelCard:
    """The model on the first of `devices` that has it, else on any. Raises InvalidInput."""
    named = [card for card in cards if card.name == options.model]
    if not named:
        known = ", ".join(sorted({card.name for card in cards if card.task == "embedding"})) or "none"
        raise InvalidInput(f"no model has that name; available models: {known}", field="model")
    if named[0].task != "embedding":
        raise InvalidInput(f"{options.model} is a cross-encoder, which has no vectors", field="model")
    if options.dimensions is not None and options.dimensions > named[0].dimensions:
        raise InvalidInput(
            f"dimensions must be at most {named[0].dimensions} for {options.model}", field="dimensions"
        )
    if options.backend != "auto":
        named = [card for card in named if card.device == options.backend]
        if not named:
            raise InvalidInput(
                f"{options.model} is not published for {options.backend}, or there is no such backend",
                field="backend",
            )
    ranks = {device: rank for rank, device in enumerate(devices)}
    return min(named, key=lambda card: ranks.get(card.device, len(ranks)))


def _slices(texts: Sequence[str], max_bytes: int) -> Iterator[range]:
    """Rows in order, as many at once as surely have no more tokens: a token has a byte at least."""
    start = size = 0
    for row, text in enumerate(texts):
        more = len(text.encode())
        if row > start and size + more > max_bytes:
            yield range(start, row)
            start, size = row, 0
        size += more
    if start < len(texts):
        yield range(start, len(texts))


def _names(table: pa.Table) -> Iterator[tuple[int, str]]:
    """Line and id of each row."""
    return zip(table["line"].to_pylist(), table["id"].to_pylist(), strict=True)


def _failed(row: tuple[int, str], code: str, why: str) -> BadRow:
    return BadRow(row[0], row[1], code, why)


def _source(stat: BlobStat, blobs: Blobs) -> Source:
    return Source(stat.size, lambda at, n: blobs.read_range(stat.key, at, n, etag=stat.etag))


def _model_named(fields: str) -> str | None:
    return msgspec.json.decode(fields, type=_Asked).model


class _Asked(msgspec.Struct, frozen=True):
    model: str | None = None


def _begun(table: pa.Table) -> int:
    """The rows of a chunk; of OpenAI Batch the requests that begin in it."""
    if "part" not in table.column_names:
        rows: int = table.num_rows
        return rows
    return int(np.count_nonzero(table["part"].to_numpy() == 0))
