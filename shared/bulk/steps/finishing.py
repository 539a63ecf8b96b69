"""The end of a bulk job: its embedded chunks become one output, its bad rows one error file.

Two finishers at once write the same bytes; the manifest is created by one of them. Does not know queues,
models or when a job is done.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from shared.bulk import arrow as pa
from shared.bulk import jobs
from shared.bulk.jobs import Counts, Job, JobManifest, Output, Split
from shared.bulk.outputs.batch import write_batch, write_batch_errors
from shared.bulk.outputs.writing import write_ids, write_jsonl, write_npy, write_parquet
from shared.bulk.paths import JobPaths
from shared.bulk.rows import BadRow, unpack_embedded
from shared.bulk.steps.expiry import expiring
from shared.errors import Unavailable
from shared.storage.blobs import Blobs


class Final(msgspec.Struct, frozen=True):
    """The blobs that a job's output is made of, the same for all its finishers. Keys, in order."""

    embedded: list[str] = msgspec.field(name="parts")  # as in Split
    bad: list[str]
    failed: list[str]
    cancelled: bool
    begun: float


def finish_job(
    out: Blobs,
    job: Job,
    clock: Callable[[], float],
    go_on: Callable[[], None],
    *,
    cancelled: bool,
) -> JobManifest | None:
    """Write output and error file of the chunks that are embedded, then the manifest, then the status.

    clock: Unix seconds. go_on: called for each chunk; what it raises ends this. Blocking, and long for a
    large job. Returns the manifest; None if another finisher was first. Raises Unavailable if the job
    ended meanwhile and its chunks are deleted.
    """
    paths = JobPaths(job.id)
    final = _agree(out, paths, clock(), cancelled)
    if out.stat(paths.manifest) is not None:
        return None
    chunks = _EmbeddedChunks(out, final.embedded, go_on)
    keep = expiring(job.keep_s)
    files = [_write(out, key, make(chunks), keep) for key, make in _outputs(job, chunks)]
    bad = _BadRows(out, final.bad, final.failed)
    files.append(_write(out, job.errors, _error_lines(job, bad), keep))
    found = out.read(paths.split)
    split = jobs.decode(found, Split) if found else None
    counts = Counts(split.rows if split else chunks.rows + bad.count, chunks.rows, bad.count)
    # As OpenAI does, a batch without answers has no output file. In other formats a file without rows is
    # written: it can be read like any other.
    absent = {job.errors} if not bad.count else set()
    if job.kind == "batch" and not chunks.rows:
        absent.add(job.output)
    for key in absent:
        out.delete(key)
    ended = clock()
    status = msgspec.structs.replace(
        jobs.status_of(job, "cancelled" if final.cancelled else "completed", counts),
        finalizing_at=None if final.cancelled else int(final.begun),
        ended_at=int(ended),
        output=None if job.output in absent else job.output,
        errors=None if job.errors in absent else job.errors,
        truncated=chunks.truncated,
    )
    outputs = tuple(file for file in files if file.key not in absent)
    manifest = JobManifest(job, status, outputs, chunks.tokens, ended - job.created)
    is_first = out.create(paths.manifest, jobs.encode(manifest))
    kept = out.read(paths.manifest)
    if kept is not None:  # another finisher may have been first
        status = jobs.decode(kept, JobManifest).status
    out.write(paths.status, jobs.encode(status))
    return manifest if is_first else None


def _agree(out: Blobs, paths: JobPaths, now: float, cancelled: bool) -> Final:
    """The first finisher's list: a later one may see more chunks, or fewer while the first cleans up."""

    def keys(prefix: str) -> list[str]:
        return [stat.key for stat in out.list(prefix)]

    if out.stat(paths.final) is None:
        final = Final(keys(paths.embedded), keys(paths.bad), keys(paths.failed), cancelled, now)
        out.create(paths.final, jobs.encode(final))
    return jobs.decode(_there(out, paths.final), Final)


def _there(out: Blobs, key: str) -> bytes:
    """A blob that must be there. Raises Unavailable if it is not: the job was cleaned up."""
    data = out.read(key)
    if data is None:
        raise Unavailable("the job has ended meanwhile")
    return data


def _outputs(
    job: Job, chunks: _EmbeddedChunks
) -> Iterator[tuple[str, Callable[[Iterable[pa.Table]], Iterator[bytes]]]]:
    """Keys and writers of a job's output files."""
    options = job.options
    if job.kind == "batch":
        yield (
            job.output,
            lambda tables: chunks.answered(write_batch(tables, job=job.id, model=options.model)),
        )
    elif options.format == "jsonl":
        yield job.output, lambda tables: write_jsonl(tables, dtype=options.dtype)
    elif options.format == "npy":
        rows = sum(table.num_rows for table in chunks)
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
                tables, dimensions=job.dimensions, dtype=options.dtype, task=job.task, metadata=about
            ),
        )


class _EmbeddedChunks:
    """A job's embedded chunks in order, read one at a time on each walk.

    rows, tokens, truncated: of the last walk; rows as in Counts, truncated as in Status.
    """

    def __init__(self, out: Blobs, keys: list[str], go_on: Callable[[], None]) -> None:
        self._out = out
        self._keys = keys
        self._go_on = go_on
        self.rows = 0
        self.tokens = 0
        self.truncated: int | None = None

    def __iter__(self) -> Iterator[pa.Table]:
        self.rows = self.tokens = 0
        self.truncated = None
        for key in self._keys:
            self._go_on()
            table = unpack_embedded(_there(self._out, key))
            self.rows += table.num_rows
            self.tokens += sum(table["tokens"].to_pylist())
            if table["truncated"].null_count < table.num_rows:
                self.truncated = (self.truncated or 0) + sum(
                    filter(None, table["truncated"].to_pylist())
                )
            yield table

    def answered(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """`lines`, one for each request that has all its vectors: those are the rows."""
        answers = 0
        for block in lines:
            answers += block.count(b"\n")
            yield block
        self.rows = answers


class _BadRows:
    """Rows that could not be read and rows that failed, by line. count: of the last walk.

    A row has one reason: the texts of a request may fail one by one, and a chunk that was given up may
    hold rows that were refused before.
    """

    def __init__(self, out: Blobs, bad: list[str], failed: list[str]) -> None:
        self._out = out
        self._bad = bad
        self._failed = failed
        self.count = 0

    def __iter__(self) -> Iterator[BadRow]:
        self.count = 0
        last: tuple[int, str | None] | None = None
        for row in heapq.merge(
            self._rows(self._bad), self._rows(self._failed), key=lambda row: row.line
        ):
            if (row.line, row.id) != last:
                last = row.line, row.id
                self.count += 1
                yield row

    def _rows(self, keys: list[str]) -> Iterator[BadRow]:
        for key in keys:
            for line in _there(self._out, key).splitlines():
                yield BadRow.from_json(line)


def _error_lines(job: Job, bad: _BadRows) -> Iterator[bytes]:
    if job.kind == "batch":
        return write_batch_errors(bad, job=job.id)
    return (row.to_json() + b"\n" for row in bad)


def _write(out: Blobs, key: str, blocks: Iterable[bytes], metadata: Mapping[str, str]) -> Output:
    digest = hashlib.sha256()
    size = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for block in blocks:
            digest.update(block)
            size += len(block)
            yield block

    out.write_stream(key, counted(), metadata)
    return Output(key, size, digest.hexdigest())
