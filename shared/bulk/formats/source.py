"""A source's bytes in order, unpacked if they are compressed, in bounded memory.

It does not know storage, lines or rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import zstandard

Compression = Literal["gzip", "zstd"]

BLOCK_BYTES = 4 << 20
"""What is asked of the source at once: a range request costs the same time for 1 KB as for 1 MB."""

# How much is unpacked at once. Deflate grows at most 1,032 times; a zstd block of 4 bytes can hold
# 128 KiB. So a piece never unpacks to more than 32 MiB, whatever the file was made for.
_PIECE_BYTES: dict[Compression, int] = {"gzip": 16 << 10, "zstd": 1 << 10}
_MAX_WINDOW_BYTES = 128 << 20  # what `zstd --long` (27) needs; the default of decoders is the same

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # after one byte 0x50 to 0x5f: what pzstd begins with


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes that can be read by ranges.

    read(start, length): those bytes, fewer (not none) if the source likes; its errors pass through.
    """

    size: int
    read: Callable[[int, int], bytes]


class Truncated(Exception):
    """The bytes end too early, or a compressed stream is damaged."""


class _Stream(Protocol):
    """What zlib's and zstandard's objects for one gzip member or one zstd frame have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def compression_of(head: bytes) -> Compression | None:
    """By the first bytes: a name may lie, and some clients unpack what they upload."""
    if head.startswith(_GZIP_MAGIC):
        return "gzip"
    skippable = head[1:4] == _SKIPPABLE and head[0] & 0xF0 == 0x50
    return "zstd" if skippable or head.startswith(_ZSTD_MAGIC) else None


def read_blocks(source: Source) -> Iterator[bytes]:
    """All bytes, in blocks whose sizes do not depend on how much each read returns.

    Raises Truncated if the source ends before its size.
    """
    for start in range(0, source.size, BLOCK_BYTES):
        length = min(BLOCK_BYTES, source.size - start)
        yield read_fully(source, start, length)


def read_fully(source: Source, start: int, length: int) -> bytes:
    """Raises Truncated if the source ends before."""
    data = source.read(start, length)
    if len(data) >= length or not data:
        if len(data) != length:
            raise Truncated
        return data
    parts, found = [data], len(data)
    while found < length:
        parts.append(source.read(start + found, length - found))
        found += len(parts[-1])
        if not parts[-1]:
            raise Truncated
    return b"".join(parts)


def unpack(blocks: Iterable[bytes], compression: Compression | None) -> Iterator[bytes]:
    """The plain bytes of all gzip members or zstd frames, one after another.

    Raises Truncated after the last bytes that could be read. Zeros after a gzip member are padding.
    """
    if compression is None:
        yield from blocks
        return
    size = _PIECE_BYTES[compression]
    stream: _Stream | None = None
    for block in blocks:
        for start in range(0, len(block), size):
            data = block[start : start + size]
            while data:
                if stream is None:
                    data = data.lstrip(b"\0") if compression == "gzip" else data
                    if not data:
                        break
                    stream = _open(compression)
                try:
                    plain = stream.decompress(data)
                except (zlib.error, zstandard.ZstdError):
                    raise Truncated from None
                if plain:
                    yield plain
                if not stream.eof:
                    break
                data, stream = stream.unused_data, None
    if stream is not None:
        raise Truncated


def _open(compression: Compression) -> _Stream:
    if compression == "gzip":
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()
