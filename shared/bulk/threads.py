"""Threads for steps that take minutes, so that those for short calls of storage stay free.

It does not know what they do.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
