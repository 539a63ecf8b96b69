"""Work in steps: a generator that yields between short pieces of work and returns the result.

Whoever runs it can stop, or let others have a turn, between any two steps. Does not know the work.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

R = TypeVar("R")
Steps: TypeAlias = Generator[None, None, R]


def completed(steps: Steps[R]) -> R:
    """Run all steps here and now; their result."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        result: R = end.value
        return result
