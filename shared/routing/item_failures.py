"""Repeats a request without the items for which the model fails, so that only these items fail.

Does not know where requests run, or how a dialect or a job reports a failed item.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic

import msgspec
import numpy as np
from msgspec.structs import astuple, replace

from shared.contracts import EmbedRequest, EmbedResult, ResultT, Timings
from shared.errors import BlitzError, DeadlineExceeded, Overloaded, Unavailable
from shared.partition import renumbered

_TEMPORARY = (Unavailable, Overloaded, DeadlineExceeded)
"""Errors that a retry may avoid. They fail the request even if they name an item."""


class Answered(msgspec.Struct, Generic[ResultT]):
    """results: (item numbers, their result) of each successful run. failed: item number -> its error."""

    results: list[tuple[list[int], ResultT]] = msgspec.field(default_factory=list)
    failed: dict[int, BlitzError] = msgspec.field(default_factory=dict)


async def run_around_failures(
    run: Callable[[list[int]], Awaitable[ResultT]], items: Sequence[int], name: str
) -> Answered[ResultT]:
    """`run(items)`. After an error that names one item as `name`[i], run the others in two halves.

    So if all N items fail, each is run about log N times. Raises errors that name no item, and
    Unavailable, Overloaded and DeadlineExceeded.
    """
    answered: Answered[ResultT] = Answered()
    named = re.compile(rf"{re.escape(name)}\[(\d+)\]")
    waiting = [list(items)]
    while waiting:
        some = waiting.pop()
        try:
            answered.results.append((some, await run(some)))
        except BlitzError as error:
            at = named.fullmatch(error.field or "")
            if at is None or int(at[1]) >= len(some) or isinstance(error, _TEMPORARY):
                raise
            answered.failed[some.pop(int(at[1]))] = error
            middle = len(some) // 2
            waiting += [half for half in (some[middle:], some[:middle]) if half]
    return answered


async def embed_around_failures(
    run: Callable[[EmbedRequest], Awaitable[EmbedResult]], asked: EmbedRequest, stand_in: str
) -> EmbedResult:
    """One result for all inputs. Those that failed are in `failed`, and their rows are zeros.

    stand_in: a text to embed if every input fails; if it fails too, the fault is the model's, and the
    error is raised. Raises Unavailable if the runs were answered by different revisions.
    """
    answered = await run_around_failures(
        lambda items: run(replace(asked, inputs=tuple(asked.inputs[item] for item in items))),
        range(len(asked.inputs)),
        asked.items_as_told,
    )
    if not answered.failed:
        return answered.results[0][1]
    results = answered.results or [([], await run(replace(asked, inputs=(stand_in,))))]
    first = results[0][1]
    if len({result.revision for _, result in results}) > 1:
        raise Unavailable(f"{asked.model} was published anew during the request", retry_after_s=1.0)
    seconds = zip(*(astuple(result.timings) for _, result in results), strict=True)
    vectors = np.zeros((len(asked.inputs), first.vectors.shape[1]), np.float32)
    token_counts = [0] * len(asked.inputs)
    cut: list[int] = []
    for items, result in results:
        vectors[items] = result.vectors[: len(items)]
        for at, item in enumerate(items):
            token_counts[item] = result.token_counts[at]
        cut += (items[at] for at in result.cut if at < len(items))
    return replace(
        first,
        vectors=vectors,
        token_counts=tuple(token_counts),
        timings=Timings(*map(sum, seconds)),
        cut=tuple(sorted(cut)),
        failed=tuple((item, _message(error, item)) for item, error in sorted(answered.failed.items())),
    )


def _message(error: BlitzError, item: int) -> str:
    """The error's message, with the item's number in the whole request."""
    return renumbered(error, lambda _: item).message
