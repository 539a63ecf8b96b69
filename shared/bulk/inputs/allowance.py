"""The limits of one input: bytes once it is unpacked, bytes of chunks, and rows.

It does not know formats, storage or settings. Who reads counts here as it goes on, and stops by what
this raises: gzip does not say how long its content is, and what a file says of itself may be a lie.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from shared.errors import InvalidInput

MAX_GROWTH = 1_000
"""Growth of a file when unpacked. Only files made for that reach it; deflate's maximum is 1,032."""
PIECE_BYTES = 256 << 10
"""How much is read at once: in lines of one byte, it becomes 10 MB of objects in half a second."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that any input may have.

    max_bytes: as it is, unpacked, or cut into chunks. free_bytes: to which a small file may grow.
    """

    max_bytes: int
    max_rows: int
    free_bytes: int = 256_000_000


NO_LIMITS = Limits(sys.maxsize, sys.maxsize)


class Allowance:
    """Of an input of `size` bytes.

    go_on: called for every piece that is read; what it raises ends the reading.
    """

    def __init__(self, size: int, limits: Limits, go_on: Callable[[], None] = lambda: None) -> None:
        self._grown = max(limits.free_bytes, MAX_GROWTH * size)
        self.limits = limits
        self._unpacked = self._written = self._rows = 0
        self.go_on = go_on

    def count_blocks(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """`blocks` in pieces of at most PIECE_BYTES, until they are too many. Raises InvalidInput."""
        for block in blocks:
            self._unpacked += len(block)
            self.check_bytes(self._unpacked, "unpacked")
            self.go_on()  # also for a block of nothing: there may be a million
            for start in range(0, len(block), PIECE_BYTES):
                if start:
                    self.go_on()
                yield block[start : start + PIECE_BYTES]

    def count_chunk(self, size: int, rows: int) -> None:
        """Before it is written. size: its bytes. Raises InvalidInput."""
        self.go_on()
        self._written += size
        self._rows += rows
        self.check_bytes(self._written, "cut into chunks")
        self.check_rows(self._rows)

    def check_bytes(self, size: int, when: str) -> None:
        """That an input may come to `size` bytes, counted or declared. Raises InvalidInput."""
        if size > self.limits.max_bytes:
            raise InvalidInput(
                f"the file has more than {self.limits.max_bytes} bytes {when}, the most that a job may "
                "have (BLITZ_MAX_JOB_BYTES): split it"
            )
        if size > self._grown:
            raise InvalidInput(
                f"the file has more than {self._grown} bytes {when}, which is more than {MAX_GROWTH} "
                "times its size"
            )

    def check_rows(self, rows: int) -> None:
        """The same of rows."""
        if rows > self.limits.max_rows:
            raise InvalidInput(
                f"the file has more than {self.limits.max_rows} rows, the most that a job may have "
                "(BLITZ_MAX_JOB_ROWS): split it"
            )
