"""Limits the concurrent transfers of a process, in total and per owner.

Does not know what is transferred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import Overloaded

_RETRY_S = 1.0


class Slots:
    """`total` slots; at most half of them for one owner, so that none can block all others.

    The owner "" (keys are off) stands for everyone and may have all. what: for messages, "uploads". For
    one event loop.
    """

    def __init__(self, total: int, what: str) -> None:
        self._total = total
        self._what = what
        self._taken: Counter[str] = Counter()

    def acquire(self, owner: str) -> None:
        """Take a slot; give it back with `release`. Raises Overloaded at once instead of waiting."""
        share = self._total // 2 if owner else self._total
        if self._taken[owner] >= share:
            whose = "one key's" if owner else "this service's"
            raise self._full(f"{share} {self._what} are in progress, {whose} limit")
        if self._taken.total() >= self._total:
            raise self._full(f"{self._total} {self._what} are in progress, this service's limit")
        self._taken[owner] += 1

    def release(self, owner: str) -> None:
        """Give back what `owner` acquired."""
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]

    @contextmanager
    def acquired(self, owner: str) -> Iterator[None]:
        """Hold a slot for the block. Raises Overloaded."""
        self.acquire(owner)
        try:
            yield
        finally:
            self.release(owner)

    def _full(self, why: str) -> Overloaded:
        return Overloaded(f"{why}: retry when one has ended", retry_after_s=_RETRY_S)
