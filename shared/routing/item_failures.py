"""Runs a request again around each item that the model fails at, so that it fails alone.

Does not know where requests run, or how a dialect or a job reports the item.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Generic

import numpy as np

from shared.contracts import EmbedRequest, EmbedResult, ResultT, Timings
from shared.errors import BlitzError, DeadlineExceeded, Overloaded, Unavailable
from shared.partition import renumbered

_TEMPORARY = (Unavailable, Overloaded, DeadlineExceeded)
"""Errors that a later try may not have, whatever they name."""


@dataclass(slots=True)
class Answered(Generic[ResultT]):
    """results: each with the items that it is of. failed: why each other item has none."""

    results: list[tuple[list[int], ResultT]] = field(default_factory=list)
    failed: dict[int, BlitzError] = field(default_factory=dict)


async def run_around_failures(
    run: Callable[[list[int]], Awaitable[ResultT]], items: Sequence[int], name: str
) -> Answered[ResultT]:
    """`run(items)`; after an error that names one of them as `name`[i], the others in halves.

    So of N items that all fail, each is run about log N times. Raises every error that names no item,
    and those that a later try may not have.
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
    """A result of all inputs, with those that failed in `failed`; their rows are zeros.

    stand_in: a text to ask for when every input fails. A model that fails at that too is at fault
    itself, and its error is raised. Raises Unavailable if the model was published anew meanwhile.
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
    """The message, with the item's number in the whole request."""
    return renumbered(error, lambda _: item).message
