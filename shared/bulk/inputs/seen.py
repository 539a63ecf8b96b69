"""A set of ids in 8 MB per million (a Python set of strings takes over 100 MB).

It does not know what the ids are used for.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_RECENT = 1 << 16


class Seen:
    """64-bit hashes: recent ones in a set, older ones in a sorted array, merged every _RECENT ids.

    Merging needs the array's memory a second time. With 10 million different ids the probability of a
    collision is 3 in a million.
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._older: NDArray[np.uint64] = np.empty(0, np.uint64)

    def add(self, id: str) -> bool:
        """Add an id. Whether it is new."""
        digest = int.from_bytes(blake2b(id.encode(), digest_size=8).digest(), "little")
        if digest in self._recent:
            return False
        at = int(self._older.searchsorted(np.uint64(digest)))
        if at < len(self._older) and int(self._older[at]) == digest:
            return False
        self._recent.add(digest)
        if len(self._recent) == _RECENT:
            recent = np.sort(np.fromiter(self._recent, np.uint64, _RECENT))
            self._older = np.concatenate((self._older, recent))
            self._older.sort(kind="stable")  # a stable sort merges two sorted runs
            self._recent.clear()
        return True
