"""Rows of a chunk in, their vectors out; and which rows have none, with the reason.

Does not know storage, nor which job is due.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from shared.backends.base import Backend
from shared.bulk import arrow as pa
from shared.bulk.jobs import Job
from shared.bulk.rows import BadRow, embedded
from shared.contracts import (
    AnyRequest,
    EmbedRequest,
    EmbedResult,
    EmbedSparseRequest,
    EmbedSparseResult,
    EmbedTokensRequest,
    EmbedTokensResult,
    SparseRow,
)
from shared.errors import BlitzError, DeadlineExceeded, InvalidInput, Misconfigured, Overloaded
from shared.names import pinned_name
from shared.partition import slices_by_bytes
from shared.request_size import MAX_NUMBERS
from shared.routing.item_failures import run_around_failures

_Result: TypeAlias = EmbedResult | EmbedSparseResult | EmbedTokensResult

_TOKENS_PER_BYTE = 4
"""A text of one byte has special tokens and a marker beside its own."""

ANSWER_S = 900.0
"""One call takes so long at most, or it is a failed try: at a chunk's 256 KB, 300 bytes a second."""

_ITEM = re.compile(r"input\[(\d+)\]")


class _Asked(msgspec.Struct, frozen=True):
    """How a row's text is to be read. In a request of OpenAI Batch, None: as the job has it."""

    prompt_name: str | None = None
    truncate: bool | None = None


class _Failure(NamedTuple):
    code: str
    why: str


class _Done(msgspec.Struct):
    """Rows that have vectors (N, D), or (N,) of what `embedded` takes. cut: whether each was cut."""

    rows: list[int]
    vectors: NDArray[Any]
    tokens: tuple[int, ...]
    cut: tuple[bool, ...]

    @classmethod
    def of(cls, rows: list[int], result: _Result) -> _Done:
        cut = tuple(at in result.cut for at in range(len(rows)))
        return cls(rows, _vectors_in(result), result.token_counts, cut)

    def leave_out_not_finite(self, failed: dict[int, _Failure]) -> None:
        """Rows whose numbers are none. The backend is to refuse them; an output must not have them."""
        if self.vectors.dtype == object:
            finite = np.array([np.isfinite(_numbers(row)).all() for row in self.vectors], bool)
        else:
            finite = np.isfinite(self.vectors).all(axis=1)
        if finite.all():
            return
        why = "the model's numbers for this text are NaN or infinite"
        failed |= {self.rows[at]: _Failure("embedding_failed", why) for at in np.flatnonzero(~finite)}
        kept = np.flatnonzero(finite).tolist()
        self.rows = [self.rows[at] for at in kept]
        self.vectors = self.vectors[kept]
        self.tokens = tuple(self.tokens[at] for at in kept)
        self.cut = tuple(self.cut[at] for at in kept)


class Embedder:
    """For one event loop. One chunk is embedded at a time.

    backend: None in a process that has no models. request_tokens: what one call of it may hold.
    """

    def __init__(self, backend: Backend | None, request_tokens: int) -> None:
        self._backend = backend
        self._request_tokens = request_tokens
        # Side by side, two chunks would take turns in the engine and end together. In a row, the first
        # is written while the second has the engine, and few are left to one process at a job's end.
        self._turn = asyncio.Lock()

    async def embed_rows(self, job: Job, table: pa.Table) -> tuple[pa.Table, list[BadRow]]:
        """The rows with their vectors; those that the model refuses or fails at, with the reason.

        Raises Misconfigured without a backend, and what the backend raises, unless it is an error that
        names one of the texts and that no later try would mend; Overloaded it waits for.
        """
        texts = table["text"].to_pylist()
        failed: dict[int, _Failure] = {}
        done: list[_Done] = []
        async with self._turn:
            for asked, rows in _rows_by_asked(job, table).items():
                for slice_ in slices_by_bytes(texts, rows, self._most_bytes(job)):
                    done += await self._embed(job, asked, texts, slice_, failed)
        for each in done:
            each.leave_out_not_finite(failed)
        rows = [row for each in done for row in each.rows]
        order = np.argsort(rows, kind="stable")
        vectors = np.concatenate([each.vectors for each in done]) if done else _none(job)
        tokens = [count for each in done for count in each.tokens]
        cut = [is_cut for each in done for is_cut in each.cut]
        chosen = table if len(rows) == len(texts) else table.take(pa.array(sorted(rows), pa.int64()))
        names = list(_names(table)) if failed else []
        bad = [_failed(names[row], failure.code, failure.why) for row, failure in sorted(failed.items())]
        vectors = vectors[order] if len(order) else _none(job)
        told = [tokens[at] for at in order], [cut[at] for at in order]
        kept = embedded(chosen, vectors, *told, task=job.task)
        return kept, bad

    def _most_bytes(self, job: Job) -> int:
        """Of the texts of a call. The vectors of tokens are many: of a text, far more than its bytes."""
        if job.task != "multi-vector":
            return self._request_tokens
        return min(self._request_tokens, MAX_NUMBERS // (_TOKENS_PER_BYTE * job.dimensions))

    async def _embed(
        self,
        job: Job,
        asked: _Asked,
        texts: list[str],
        rows: list[int],
        failed: dict[int, _Failure],
    ) -> list[_Done]:
        """Those of `rows` that the model takes. The others are added to `failed`."""
        try:
            answered = await run_around_failures(
                lambda some: self._ask(job, asked, [texts[row] for row in some]), rows, "input"
            )
        except BlitzError as error:
            if error.field != "prompt_name" or job.kind != "batch":
                raise
            why = f"body.prompt_name: {error.message}"
            failed |= dict.fromkeys(rows, _Failure("input_refused", why))
            return []
        for row, refused in answered.failed.items():
            code = "input_refused" if isinstance(refused, InvalidInput) else "embedding_failed"
            why = _ITEM.sub("the text", refused.message)  # its number is of the call alone
            failed[row] = _Failure(code, why)
        return [_Done.of(some, result) for some, result in answered.results]

    async def _ask(self, job: Job, asked: _Asked, texts: list[str]) -> _Result:
        """Waits while the backend has too much to do: that is no reason to count a try."""
        if self._backend is None:
            raise Misconfigured("this process has no models to embed with")
        request = _request(job, asked, tuple(texts))
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    result: _Result = await self._backend.run(request)
                    return result
            except TimeoutError:
                raise DeadlineExceeded(f"a chunk took more than {ANSWER_S:.0f} s") from None
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_s or 1.0)


def give_up_rows(job: Job, table: pa.Table) -> tuple[pa.Table, list[BadRow]]:
    """As `embed_rows`, of a chunk that failed too often: no row has a vector."""
    why = "the rows of this chunk could not be embedded, in several tries"
    failed = [_failed(row, "embedding_failed", why) for row in _names(table)]
    return embedded(table.slice(0, 0), _none(job), [], task=job.task), failed


def _request(job: Job, asked: _Asked, texts: tuple[str, ...]) -> AnyRequest:
    name, truncate = pinned_name(job.options.model, job.revision), asked.truncate is not False
    if job.task == "sparse":
        return EmbedSparseRequest(name, texts, truncate, prompt_name=asked.prompt_name)
    if job.task == "multi-vector":
        return EmbedTokensRequest(name, texts, truncate, prompt_name=asked.prompt_name)
    return EmbedRequest(
        name, texts, job.options.dimensions, truncate=truncate, prompt_name=asked.prompt_name
    )


def _vectors_in(result: _Result) -> NDArray[Any]:
    """(N, D), or (N,) objects."""
    if isinstance(result, EmbedResult):
        return result.vectors
    rows = np.empty(len(result.counts), object)
    for index, row in enumerate(result.per_input):
        rows[index] = row
    return rows


def _numbers(row: Any) -> NDArray[Any]:
    return row.values if isinstance(row, SparseRow) else np.asarray(row)


def _none(job: Job) -> NDArray[Any]:
    return np.empty((0, job.dimensions), np.float32)


def _rows_by_asked(job: Job, table: pa.Table) -> dict[_Asked, list[int]]:
    """Rows that one call of the backend may hold: those that are to be read alike."""
    own = _Asked(job.options.prompt_name, job.options.truncate)
    if job.kind != "batch":
        return {own: list(range(table.num_rows))}
    groups: dict[_Asked, list[int]] = {}
    for row, fields in enumerate(table["fields"].to_pylist()):
        given = msgspec.json.decode(fields or "{}", type=_Asked)
        asked = _Asked(
            own.prompt_name if given.prompt_name is None else given.prompt_name,
            own.truncate if given.truncate is None else given.truncate,
        )
        groups.setdefault(asked, []).append(row)
    return groups


def _names(table: pa.Table) -> Iterator[tuple[int, str]]:
    """Line and id of each row."""
    return zip(table["line"].to_pylist(), table["id"].to_pylist(), strict=True)


def _failed(row: tuple[int, str], code: str, why: str) -> BadRow:
    return BadRow(row[0], row[1], code, why)
