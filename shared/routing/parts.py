"""The parts of one request at one backend: side by side, and none refused because of the others.

Does not know which backend that is, how the request was split, or what else goes there.
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
"""A backend that has too much to do and does not say for how long is asked again after this."""


class Parts(Generic[ResultT]):
    """Answers `parts` by `call`. part_texts: how many texts each has, but the last. max_tokens: of all.

    A backend sees parts as requests, and its queue may have room for the first of them only. A request
    is admitted as a whole: once it is, a part that is Overloaded waits until one of its own is answered,
    or as long as the backend says, and is asked again; for how long, the deadline says. It is admitted
    unless every part is refused: that queue is full of others' work.
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
        """Results in order. Parts that an older revision answered are asked once more.

        Raises the first error of a part, which ends the others, and PayloadTooLarge as soon as those
        that were answered have too many tokens.
        """
        everything = range(len(self._parts))
        await _all(self._run(index) for index in everything)
        # The revision that answered last is taken for the newest: a backend only moves forward.
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
        """The answer, however often the backend says that it has too much to do."""
        while True:
            self._under_way += 1
            try:
                result = await self._call(part)
                async with self._answered:
                    self._answered.notify()  # the room of one is room for one
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
    """Side by side; the first error cancels the rest, and comes out as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(run)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
