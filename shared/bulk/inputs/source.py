"""A source of bytes that is read by ranges, or in blocks of a fixed size.

It does not know storage, lines or rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from shared.compression import Truncated

BLOCK_BYTES = 4 << 20
"""Bytes per range request: a request for 1 KB takes as long as one for 1 MB."""


class ByteSource(msgspec.Struct, frozen=True):
    """`size` bytes that can be read by ranges.

    read(start, length): those bytes. It may return fewer, but at least one; its errors pass through.
    """

    size: int
    read: Callable[[int, int], bytes]


def read_blocks(source: ByteSource) -> Iterator[bytes]:
    """All bytes, in blocks whose sizes do not depend on how much each read returns.

    Raises Truncated if the source ends before its size.
    """
    for start in range(0, source.size, BLOCK_BYTES):
        length = min(BLOCK_BYTES, source.size - start)
        yield read_fully(source, start, length)


def read_fully(source: ByteSource, start: int, length: int) -> bytes:
    """Exactly `length` bytes from `start`, in one or more reads. Raises Truncated if there are fewer."""
    data = source.read(start, length)
    if len(data) >= length or not data:
        if len(data) != length:
            raise Truncated
        return data
    blocks, found = [data], len(data)
    while found < length:
        blocks.append(source.read(start + found, length - found))
        found += len(blocks[-1])
        if not blocks[-1]:
            raise Truncated
    return b"".join(blocks)
