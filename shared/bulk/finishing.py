"""The end of a bulk job: its parts as one output, its bad rows as one error file, its manifest.

Two finishers at once write the same bytes; the manifest is created by one of them. Does not know
queues, models or when a job is done.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from shared.bulk import jobs
from shared.bulk.batch_output import write_batch, write_batch_errors
from shared.bulk.jobs import Counts, Job, Manifest, Output, Split, Status
from shared.bulk.rows import BadRow, unpack_table
from shared.bulk.storage import Blobs
from shared.bulk.writing import write_ids, write_jsonl, write_npy, write_parquet


def finish_job(out: Blobs, job: Job, now: float, *, cancelled: bool) -> None:
    """Write output and error file of the parts that are there, then the manifest, then the status.

    now: Unix seconds. Blocking, and long for a large job.
    """
    folder = f"jobs/{job.id}"
    parts = _Parts(out, f"{folder}/parts/")
    outputs = [_write(out, key, make(parts)) for key, make in _outputs(job, parts)]
    bad = _BadRows(out, folder)
    errors = _write(out, job.errors, _error_lines(job, bad))
    found = out.read(f"{folder}/split.json")
    split = jobs.decode(found, Split) if found else None
    counts = Counts(split.rows if split else parts.rows + bad.count, parts.rows, bad.count)
    if not bad.count:
        out.delete(job.errors)
    status = Status(
        job.id,
        "cancelled" if cancelled else "completed",
        job.source,
        job.options.model,
        job.created,
        counts,
        ended_at=int(now),
        output=job.output,
        errors=job.errors if bad.count else None,
    )
    files = (*outputs, errors) if bad.count else tuple(outputs)
    manifest = Manifest(job, status, files, parts.tokens, now - job.created)
    out.create(f"{folder}/manifest.json", jobs.encode(manifest))
    kept = out.read(f"{folder}/manifest.json")
    if kept is not None:  # another finisher may have been first
        status = jobs.decode(kept, Manifest).status
    out.write(f"{folder}/status.json", jobs.encode(status))


def _outputs(
    job: Job, parts: _Parts
) -> Iterator[tuple[str, Callable[[Iterable[pa.Table]], Iterator[bytes]]]]:
    """Keys and writers of a job's output files."""
    options = job.options
    if job.kind == "batch":
        yield job.output, lambda tables: write_batch(tables, job=job.id, model=options.model)
    elif options.format == "jsonl":
        yield job.output, lambda tables: write_jsonl(tables, dtype=options.dtype)
    elif options.format == "npy":
        rows = sum(table.num_rows for table in parts)
        yield (
            job.output,
            lambda tables: write_npy(tables, rows=rows, dimensions=job.dimensions, dtype=options.dtype),
        )
        yield f"{job.source}.ids.jsonl", lambda tables: write_ids(tables, dtype=options.dtype)
    else:
        about = {"blitz.model": options.model, "blitz.revision": job.revision}
        yield (
            job.output,
            lambda tables: write_parquet(
                tables, dimensions=job.dimensions, dtype=options.dtype, metadata=about
            ),
        )


class _Parts:
    """A job's parts in order, read one at a time on each walk. rows, tokens: of the last walk."""

    def __init__(self, out: Blobs, folder: str) -> None:
        self._out = out
        self._folder = folder
        self.rows = 0
        self.tokens = 0

    def __iter__(self) -> Iterator[pa.Table]:
        self.rows = self.tokens = 0
        for stat in self._out.list(self._folder):
            data = self._out.read(stat.key)
            if data is not None:
                table = unpack_table(data)
                self.rows += table.num_rows
                self.tokens += sum(table["tokens"].to_pylist())
                yield table


class _BadRows:
    """Rows that could not be read and rows that failed, by line. count: of the last walk."""

    def __init__(self, out: Blobs, folder: str) -> None:
        self._out = out
        self._folder = folder
        self.count = 0

    def __iter__(self) -> Iterator[BadRow]:
        self.count = 0
        read, failed = (self._rows(f"{self._folder}/{what}/") for what in ("bad", "failed"))
        for row in heapq.merge(read, failed, key=lambda row: row.line):
            self.count += 1
            yield row

    def _rows(self, folder: str) -> Iterator[BadRow]:
        for stat in self._out.list(folder):
            for line in (self._out.read(stat.key) or b"").splitlines():
                yield BadRow.from_json(line)


def _error_lines(job: Job, bad: _BadRows) -> Iterator[bytes]:
    if job.kind == "batch":
        return write_batch_errors(bad, job=job.id)
    return (row.to_json() + b"\n" for row in bad)


def _write(out: Blobs, key: str, blocks: Iterable[bytes]) -> Output:
    digest = hashlib.sha256()
    size = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for block in blocks:
            digest.update(block)
            size += len(block)
            yield block

    out.write_stream(key, counted())
    return Output(key, size, digest.hexdigest())
