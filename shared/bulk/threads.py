"""Threads for steps that take minutes, apart from those for short calls of storage; and their turns.

It does not know what they do.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """count: calls that run at once; others wait."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, "bulk")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As asyncio.to_thread, whose threads the whole process shares: one for each core, and four."""
        context = contextvars.copy_context()
        work = partial(context.run, partial(call, *args, **kwargs))
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


class Turn:
    """A lock that threads get in the order in which they ask for it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._owner: int | None = None
        self._waiting: deque[tuple[int, threading.Event]] = deque()

    def __enter__(self) -> None:
        me, mine = threading.get_ident(), threading.Event()
        with self._mutex:
            if self._owner is None:
                self._owner = me
                return
            self._waiting.append((me, mine))
        mine.wait()

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            self._owner = None
            if self._waiting:
                self._owner, next_ = self._waiting.popleft()
                next_.set()

    @contextmanager
    def left(self) -> Iterator[None]:
        """Others may have the turn meanwhile, if the caller has it."""
        if self._owner != threading.get_ident():
            yield
            return
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def give_way(self) -> None:
        """To those who wait, if the caller has the turn."""
        if self._waiting:
            with self.left():
                pass
