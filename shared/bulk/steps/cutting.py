"""Cuts a job's input into chunks in storage, with a message for each, within the limits of a job.

Blocking, and long for a large input. Does not know options, models or how rows become vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from shared.bulk import arrow as pa
from shared.bulk import control, jobs
from shared.bulk.inputs.allowance import Allowance, Limits
from shared.bulk.inputs.apart import cut_apart
from shared.bulk.inputs.detect import InputFormat, ReadOptions, read_rows
from shared.bulk.inputs.source import ByteSource
from shared.bulk.jobs import Job, Split
from shared.bulk.ledger import REPORT_S
from shared.bulk.paths import JobPaths, chunk_name
from shared.bulk.rows import TEXT_INDEX, BadRow, Chunk, Row, cut_chunks
from shared.bulk.steps.relay import Beginning
from shared.bulk.threads import Turn
from shared.context import trace
from shared.errors import InvalidInput
from shared.observability.metrics import Telemetry
from shared.storage.blobs import Blobs, Storage

STALLED_S = 600.0
"""An input that gives no chunk for so long is given up."""


class _Cancelled(Exception):
    """Somebody wants the job to end."""


class Cutter:
    """limits: of one job. max_inputs: texts of one request of OpenAI Batch. aliases: of models -> names.

    clock: Unix seconds. go_on: called between blocks and chunks; what it raises ends the step.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        limits: Limits,
        max_inputs: int,
        aliases: Mapping[str, str],
        clock: Callable[[], float],
        go_on: Callable[[], None],
        metrics: Telemetry,
    ) -> None:
        self._storage = storage
        self._limits = limits
        self._max_inputs = max_inputs
        self._aliases = aliases
        self._clock = clock
        self._go_on = go_on
        self._metrics = metrics
        # Parsing lines holds Python's lock, which requests need too. So one thread at a time parses, a
        # piece at a time; while it waits for bytes or writes a chunk, another has its turn.
        self._turn = Turn()

    def first_row(self, job: Job, blobs: Blobs) -> Row | BadRow | None:
        """The first row that is not bad, else the first bad one; None if there is none.

        job: may be a draft. Raises InvalidInput over a limit, and what storage and go_on raise.
        """
        allowance = Allowance(job.size, self._limits, self._go_on)
        first: BadRow | None = None
        with self._turn:
            source = self._waiting(_source(job, blobs))
            for row in read_rows(source, _format(job), self._options(job), allowance):
                if isinstance(row, Row):
                    return row
                first = first or row
        return first

    def write(self, job: Job, blobs: Blobs) -> None:
        """All chunks, and split.json; stops within seconds if the job is cancelled.

        Raises InvalidInput if the input cannot be read or is over a limit; chunks may have been written.
        """
        allowance = Allowance(job.size, self._limits, self._go_on)
        progress = _Progress(self._storage.out, job, self._clock)

        def go_on() -> None:
            self._go_on()
            progress.look()
            self._turn.give_way()

        allowance.go_on = go_on
        try:
            self._write(job, self._chunks(job, blobs, allowance), allowance, progress)
        except _Cancelled:
            return

    def _chunks(self, job: Job, blobs: Blobs, allowance: Allowance) -> Iterator[Chunk]:
        allowance.check_bytes(job.size, "as it is")
        source, form, options = _source(job, blobs), _format(job), self._options(job)
        if form.kind == "parquet":
            return cut_apart(source, form, options, allowance)
        return self._in_turn(cut_chunks(read_rows(self._waiting(source), form, options, allowance)))

    def _in_turn(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        while True:
            with self._turn:
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _waiting(self, source: ByteSource) -> ByteSource:
        """Reads of a thread that has the turn give it to others meanwhile."""

        def read(start: int, length: int) -> bytes:
            with self._turn.left():
                return source.read(start, length)

        return ByteSource(source.size, read)

    def _write(
        self, job: Job, chunks: Iterator[Chunk], allowance: Allowance, progress: _Progress
    ) -> None:
        out, paths = self._storage.out, JobPaths(job.id)
        count = to_embed = good = bad = 0
        beginning = Beginning(self._storage, job)
        for chunk in chunks:
            progress.chunk_came()
            packed, errors = chunk.to_arrow(), chunk.bad_to_json()
            allowance.count_chunk(len(packed) + len(errors), chunk.table.num_rows + len(chunk.bad))
            begun = _begun(chunk.table)
            count, good, bad = count + 1, good + begun, bad + len(chunk.bad)
            if chunk.bad and out.create(paths.bad_rows(chunk.index), errors):
                self._metrics.bulk_rows_unreadable(len(chunk.bad))
            if chunk.table.num_rows:
                # Chunks without rows have no number, so that the numbers have no gaps.
                name = chunk_name(to_embed, begun)
                to_embed += 1
                beginning.written(name, is_new=out.create(paths.chunk(name), packed))
        split = Split(count, to_embed, good + bad, bad)
        # Before split.json: after it the job may end at any time, and nothing may overwrite its last
        # status.
        out.write(paths.status, jobs.encode(control.status_of(out, job, split)))
        out.create(paths.split, jobs.encode(split))
        trace.note({}, {"rows": good + bad, "failed": bad})

    def _options(self, job: Job) -> ReadOptions:
        return ReadOptions(
            kind=job.options.kind,
            text_column=job.options.text_column,
            id_column=job.options.id_column,
            model=(job.options.model or None) if job.kind == "batch" else None,
            aliases=self._aliases,
            max_dimensions=job.dimensions or None,
            max_inputs=self._max_inputs,
        )


class _Progress:
    """Looks every REPORT_S whether a job is cancelled, and writes its status."""

    def __init__(self, out: Blobs, job: Job, clock: Callable[[], float]) -> None:
        self._out = out
        self._job = job
        self._clock = clock
        self._looked = self._came = clock()

    def chunk_came(self) -> None:
        self._came = self._clock()

    def look(self) -> None:
        """Raises _Cancelled; InvalidInput if no chunk came for STALLED_S."""
        now = self._clock()
        if now - self._looked <= REPORT_S:
            return
        self._looked = now
        paths = JobPaths(self._job.id)
        if self._out.stat(paths.cancel):
            raise _Cancelled
        if now - self._came > STALLED_S:
            raise InvalidInput(f"the file is given up: no row could be read for {STALLED_S:.0f} s")
        self._out.write(paths.status, jobs.encode(control.status_of(self._out, self._job)))


def _source(job: Job, blobs: Blobs) -> ByteSource:
    return ByteSource(job.size, lambda at, n: blobs.read_range(job.source, at, n, etag=job.etag))


def _format(job: Job) -> InputFormat:
    return InputFormat(job.kind, job.compression)


def _begun(table: pa.Table) -> int:
    """The rows of a chunk; of OpenAI Batch the requests that begin in it."""
    if TEXT_INDEX not in table.column_names:
        rows: int = table.num_rows
        return rows
    return int(np.count_nonzero(table[TEXT_INDEX].to_numpy() == 0))
