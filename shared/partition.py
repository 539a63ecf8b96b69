"""Large requests as parts, and parts' results as one: pure, in order, nothing lost.

Does not know where parts run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from shared.contracts import RequestT, Result, ResultT, Timings
from shared.errors import BlitzError

_ITEM = re.compile(r"(\w+)\[(\d+)\](.*)", re.DOTALL)


def split(request: RequestT, size: int) -> list[RequestT]:
    """Requests like `request` for `size` inputs or documents each, the last for what is left."""
    texts = request.texts
    if len(texts) <= size:
        return [request]
    return [
        replace(request, **{request.items: texts[start : start + size]})
        for start in range(0, len(texts), size)
    ]


def slices_by_bytes(texts: Sequence[str], rows: Sequence[int], most: int) -> Iterator[list[int]]:
    """Rows in order, as many at once as have no more bytes than `most`, but at least one.

    most: of tokens, which surely are no more then: a token has a byte at least.
    """
    slice_: list[int] = []
    size = 0
    for row in rows:
        more = len(texts[row].encode())
        if slice_ and size + more > most:
            yield slice_
            slice_, size = [], 0
        slice_.append(row)
        size += more
    if slice_:
        yield slice_


def join(results: Sequence[ResultT]) -> ResultT:
    """One result for all parts, in their order; all are of one model and revision.

    timings: of the slowest part in each step, since parts run side by side. token_counts are of what
    was fed: with "cosine" scores the query is fed, and counted, once a part, in the part's first entry.
    """
    first = results[0]
    if len(results) == 1:
        return first
    whole: dict[str, Any] = {
        name: _joined(results, name) for name in ("token_counts", *first.joined_by_item, *first.joined)
    }
    whole["timings"] = Timings(
        *(max(getattr(result.timings, name) for result in results) for name in Timings.__struct_fields__)
    )
    whole["cut"] = _cut_in_whole(results)
    return first.replaced(**whole)


def _joined(results: Sequence[Result], name: str) -> object:
    """One field's entries of all results; None if one of them has none."""
    values = [getattr(result, name) for result in results]
    if any(value is None for value in values):
        return None
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    return tuple(each for value in values for each in value)


def _cut_in_whole(results: Sequence[Result]) -> tuple[int, ...]:
    cut: list[int] = []
    start = 0
    for result in results:
        cut += (start + index for index in result.cut)
        start += len(result.token_counts)
    return tuple(cut)


def in_whole(error: BlitzError, start: int) -> BlitzError:
    """The error of a part that begins at item `start` as the whole's: input[3] is renumbered."""
    return renumbered(error, lambda index: start + index)


def renumbered(error: BlitzError, number: Callable[[int], int]) -> BlitzError:
    """`error` with the item that it names, in its message too, at `number` of its index."""
    item = _ITEM.fullmatch(error.field or "")
    if item is None:
        return error
    right = f"{item[1]}[{number(int(item[2]))}]"
    message = error.message.replace(f"{item[1]}[{item[2]}]", right)
    return type(error)(message, field=right + item[3], retry_after_s=error.retry_after_s)
