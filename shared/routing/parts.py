"""Runs the parts of a split request concurrently on one backend, admitted or refused as a whole.

Does not know which backend, how the request was split, or other requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Generic

from shared import partition
from shared.contracts import Request, ResultT
from shared.errors import BlitzError, Overloaded
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
        self._newest = ""
        self._under_way = 0
        self._answered = asyncio.Condition()

    async def answer(self) -> list[ResultT]:
        """Results in order. Parts answered by an older revision are run once more.

        Raises the first error of a part, which cancels the others, and PayloadTooLarge as soon as the
        results so far have too many tokens.
        """
        everything = range(len(self._parts))
        await _all(self._run(index) for index in everything)
        # The revision of the last result counts as the newest: backends only move forward.
        current = self._newest
        older = [index for index in everything if self._results[index].revision != current]
        await _all(self._run(index) for index in older)
        return [self._results[index] for index in everything]

    async def _run(self, index: int) -> None:
        part = self._parts[index]
        try:
            result = await self._call_until_admitted(part)
        except BlitzError as error:
            raise partition.in_whole(error, index * self._part_texts) from error
        self._results[index] = result
        self._newest = result.revision
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


async def _all(runs: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run concurrently; the first error cancels the rest and is raised unwrapped."""
    try:
        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(run)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
