"""How many transfers of a kind are under way in this process, and how many of them one owner may have.

Does not know what is transferred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import Overloaded

_RETRY_S = 1.0


class Slots:
    """`total` at once; at most half of them for one owner, so that none keeps out all others.

    Whoever has no name ("", where no keys are known) is everyone, and has all. what: "uploads". For one
    event loop.
    """

    def __init__(self, total: int, what: str) -> None:
        self._total = total
        self._what = what
        self._taken: Counter[str] = Counter()

    def acquire(self, owner: str) -> None:
        """Take one, to be left with `release`. Raises Overloaded at once: nobody waits for a slot."""
        share = self._total // 2 if owner else self._total
        if self._taken[owner] >= share:
            whose = "one key's" if owner else "this service's"
            raise self._full(f"{share} {self._what} are under way, which is {whose} limit")
        if self._taken.total() >= self._total:
            raise self._full(f"{self._total} {self._what} are under way, which is all at once")
        self._taken[owner] += 1

    def release(self, owner: str) -> None:
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]

    @contextmanager
    def acquired(self, owner: str) -> Iterator[None]:
        """Take one for the block. Raises Overloaded."""
        self.acquire(owner)
        try:
            yield
        finally:
            self.release(owner)

    def _full(self, why: str) -> Overloaded:
        return Overloaded(f"{why}: retry when one has ended", retry_after_s=_RETRY_S)
