"""Runs the parts of a split request concurrently on one backend, admitted or refused as a whole.

Does not know which backend, how the request was split, or other requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Generic

from msgspec.structs import replace

from shared import partition
from shared.contracts import Request, ResultT
from shared.errors import (
    BackendFailed,
    BlitzError,
    ModelLoadFailed,
    Overloaded,
    StoreUnavailable,
    UnknownModel,
)
from shared.names import pinned_name, split_pinned
from shared.request_size import check_tokens

RETRY_S = 1.0
"""Pause before a retry if an overloaded backend states none."""


class Parts(Generic[ResultT]):
    """Runs `parts` by `call`. part_texts: texts of each part but the last. max_tokens: of all parts.

    A backend sees parts as requests, and its queue may have room for the first few only. The request is
    refused only if every part is: then others' work fills the queue. Otherwise a part that is Overloaded
    waits for another part's result, or as long as the backend says, and is retried until the deadline.
    """

    def __init__(
        self,
        parts: Sequence[Request[ResultT]],
        call: Callable[[Request[ResultT]], Awaitable[ResultT]],
        *,
        part_texts: int,
        max_tokens: int,
    ) -> None:
        self._parts: Sequence[Request[ResultT]] = parts
        self._call: Callable[[Request[ResultT]], Awaitable[ResultT]] = call
        self._part_texts = part_texts
        self._max_tokens = max_tokens
        self._results: dict[int, ResultT] = {}
        self._revisions: list[str] = []
        self._under_way = 0
        self._answered = asyncio.Condition()

    async def answer(self) -> list[ResultT]:
        """Results in order, all of one revision.

        A backend of several processes changes its revision in one after the other. Parts that met
        another revision than the latest are run again, and ask for that one by name; if not every
        process can load it, for the next one.

        Raises the first error of a part, which cancels the others, PayloadTooLarge as soon as the
        results so far have too many tokens, and ModelLoadFailed if all parts can get no revision.
        """
        await _all(self._run(index, part) for index, part in enumerate(self._parts))
        met = dict.fromkeys(reversed(self._revisions))  # the last result's is probably the newest
        for revision in met:
            with suppress(UnknownModel, ModelLoadFailed, StoreUnavailable):
                await _all(self._run(*each) for each in self._pinned_to(revision))
                return [self._results[index] for index in range(len(self._parts))]
        raise ModelLoadFailed("the model is being updated: retry", retry_after_s=1.0)

    def _pinned_to(self, revision: str) -> list[tuple[int, Request[ResultT]]]:
        """Parts whose result is of another revision, asking for this one."""
        return [
            (index, replace(part, model=pinned_name(part.model, revision)))
            for index, part in enumerate(self._parts)
            if self._results[index].revision != revision
        ]

    async def _run(self, index: int, part: Request[ResultT]) -> None:
        try:
            result = await self._call_until_admitted(part)
        except BlitzError as error:
            raise partition.in_whole(error, index * self._part_texts) from error
        check_revision(result.revision, split_pinned(part.model)[1])
        self._results[index] = result
        self._revisions.append(result.revision)
        tokens = sum(each.total_tokens for each in self._results.values())
        complete = len(self._results) == len(self._parts)
        check_tokens(tokens, self._max_tokens, part.items_as_told, counted_all=complete)

    async def _call_until_admitted(self, part: Request[ResultT]) -> ResultT:
        """Call, and retry while the backend is overloaded."""
        while True:
            self._under_way += 1
            try:
                result = await self._call(part)
                async with self._answered:
                    self._answered.notify()  # its queue space is free for one more
                return result
            except Overloaded as error:
                if self._under_way == 1 and not self._results:
                    raise
                wait_s = error.retry_after_s or RETRY_S
            finally:
                self._under_way -= 1
            async with self._answered:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._answered.wait(), wait_s)


def check_revision(answered: str, asked_for: str) -> None:
    """A backend that does not do as it is told must not be believed. asked_for: "" is any."""
    if asked_for and answered != asked_for:
        raise BackendFailed("the backend answered with another revision than the one it was asked for")


async def _all(runs: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run concurrently; the first error cancels the rest and is raised unwrapped."""
    try:
        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(run)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
