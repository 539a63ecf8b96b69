"""Rows of a chunk in, their vectors out; and which rows have none, with the reason.

Does not know storage, nor which job is due.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from shared.backend_client import Backend
from shared.bulk.jobs import Job
from shared.bulk.rows import BadRow, embedded
from shared.contracts import EmbedRequest, EmbedResult
from shared.errors import InvalidInput, Misconfigured, Overloaded
from shared.manifest import pinned_name

_ITEM = re.compile(r"input\[(\d+)\]")


class Embedder:
    """backend: None in a process that has no models. request_tokens: what one call of it may hold."""

    def __init__(self, backend: Backend | None, request_tokens: int) -> None:
        self._backend = backend
        self._request_tokens = request_tokens

    async def embed_rows(self, job: Job, table: pa.Table) -> tuple[pa.Table, list[BadRow]]:
        """The rows with their vectors; those that the model refuses, with the reason.

        Raises Misconfigured without a backend, and what the backend raises; Overloaded it waits for.
        """
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


def give_up_rows(job: Job, table: pa.Table) -> tuple[pa.Table, list[BadRow]]:
    """As `embed_rows`, of a chunk that failed too often: no row has a vector."""
    why = "the rows of this chunk could not be embedded, in several tries"
    failed = [_failed(row, "embedding_failed", why) for row in _names(table)]
    return embedded(table.slice(0, 0), np.empty((0, job.dimensions), np.float32), []), failed


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
