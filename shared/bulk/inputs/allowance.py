"""Enforces the limits of one input: unpacked bytes, bytes of chunks, and rows.

Readers count here while they read, because gzip does not state the size of its content, and other
declared sizes may be wrong. It does not know formats, storage or settings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

import msgspec

from shared.errors import InvalidInput

MAX_GROWTH = 1_000
"""Largest growth factor of a file when unpacked. Real files stay below; deflate's maximum is 1,032."""
PIECE_BYTES = 256 << 10
"""Bytes passed on at a time. In lines of one byte, that is 10 MB of objects and half a second."""


class Limits(msgspec.Struct, frozen=True):
    """Limits of every input.

    max_bytes: of the file, of its unpacked content, and of its chunks (each). max_rows: bad rows
    included. free_bytes: unpacked size that is allowed whatever the growth factor.
    """

    max_bytes: int
    max_rows: int
    free_bytes: int = 256_000_000


NO_LIMITS = Limits(sys.maxsize, sys.maxsize)


class Allowance:
    """Counts bytes and rows of one input of `size` bytes against `limits`.

    go_on: called for every piece that is read; an exception that it raises ends the reading.
    """

    def __init__(self, size: int, limits: Limits, go_on: Callable[[], None] = lambda: None) -> None:
        self._grown = max(limits.free_bytes, MAX_GROWTH * size)
        self.limits = limits
        self._unpacked = self._written = self._rows = 0
        self.go_on = go_on

    def count_blocks(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """`blocks` in pieces of at most PIECE_BYTES. Raises InvalidInput once a limit is exceeded."""
        for block in blocks:
            self._unpacked += len(block)
            self.check_bytes(self._unpacked, "unpacked")
            self.go_on()  # for empty blocks too: there may be a million of them
            for start in range(0, len(block), PIECE_BYTES):
                if start:
                    self.go_on()
                yield block[start : start + PIECE_BYTES]

    def count_chunk(self, size: int, rows: int) -> None:
        """Count a chunk before it is written. size: its bytes. Raises InvalidInput over a limit."""
        self.go_on()
        self._written += size
        self._rows += rows
        self.check_bytes(self._written, "cut into chunks")
        self.check_rows(self._rows)

    def check_bytes(self, size: int, when: str) -> None:
        """Raises InvalidInput if `size` bytes, counted or declared, exceed a limit. when: for it."""
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
        """Raises InvalidInput if `rows` rows, counted or declared, are over the limit."""
        if rows > self.limits.max_rows:
            raise InvalidInput(
                f"the file has more than {self.limits.max_rows} rows, the most that a job may have "
                "(BLITZ_MAX_JOB_ROWS): split it"
            )
