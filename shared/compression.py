"""gzip and zstd: what is compressed, and its plain bytes in bounded memory. Knows no files or bodies."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol

import zstandard

from shared.errors import InvalidInput

Compression = Literal["gzip", "zstd"]


# How much is unpacked at once. Deflate grows at most 1,032 times; a zstd block of 4 bytes can hold
# 128 KiB. So a piece never unpacks to more than 8 MiB, whatever the file was made for.
_PIECE_BYTES: dict[Compression, int] = {"gzip": 8 << 10, "zstd": 256}
_MAX_WINDOW_BYTES = 128 << 20  # what `zstd --long` (27) needs; the default of decoders is the same
_HEADER_BYTES = 18  # of a zstd frame, at most


_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # after one byte 0x50 to 0x5f: what pzstd begins with


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


def unpack(
    blocks: Iterable[bytes],
    compression: Compression | None,
    declared: Callable[[int], None] = lambda size: None,
) -> Iterator[bytes]:
    """The plain bytes of all gzip members or zstd frames, one after another; b"" for one without any.

    declared: called with the size that a zstd frame says it has, before it is unpacked.

    Raises Truncated after the last bytes that could be read, InvalidInput for a frame that wants too
    large a window. Zeros after a gzip member are padding.
    """
    if compression is None:
        yield from blocks
    elif compression == "gzip":
        yield from _unpack(_cut(blocks, _PIECE_BYTES["gzip"]), _open_gzip, 1, padding=b"\0")
    else:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)

        def open_zstd(head: bytes) -> _Stream:
            _check_frame(head, declared)
            return decompressor.decompressobj()

        yield from _unpack(_cut(blocks, _PIECE_BYTES["zstd"]), open_zstd, _HEADER_BYTES)


def _cut(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    for block in blocks:
        for start in range(0, len(block), size):
            yield block[start : start + size]
    yield b""  # the end


def _unpack(
    pieces: Iterable[bytes], open_: Callable[[bytes], _Stream], wanted: int, padding: bytes = b""
) -> Iterator[bytes]:
    """pieces: the last one is empty. open_: a stream for what begins so, told by `wanted` bytes."""
    stream: _Stream | None = None
    data = b""
    for piece in pieces:
        data += piece
        while data:
            if stream is None:
                data = data.lstrip(padding) if padding else data
                if not data or (len(data) < wanted and piece):
                    break
                stream = open_(data)
            plain, data = _decompress(stream, data)
            yield plain
            if stream.eof:
                stream = None
    if stream is not None:
        raise Truncated


def _decompress(stream: _Stream, data: bytes) -> tuple[bytes, bytes]:
    """What is in it, and what stands behind the stream's end."""
    try:
        plain = stream.decompress(data)
    except (zlib.error, zstandard.ZstdError):
        raise Truncated from None
    return plain, stream.unused_data if stream.eof else b""


def _open_gzip(head: bytes) -> _Stream:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _check_frame(head: bytes, declared: Callable[[int], None]) -> None:
    """What a zstd frame says of itself. Raises InvalidInput."""
    try:
        frame = zstandard.get_frame_parameters(head.ljust(_HEADER_BYTES, b"\0"))
    except zstandard.ZstdError:
        raise Truncated from None
    if frame.window_size > _MAX_WINDOW_BYTES:
        raise InvalidInput(
            f"a zstd frame of the file needs a window of {frame.window_size} bytes, more than "
            f"{_MAX_WINDOW_BYTES}: compress it without --long above 27"
        )
    # Of a skippable frame, which has no window, it is what is skipped.
    if frame.window_size and frame.content_size != zstandard.CONTENTSIZE_UNKNOWN:
        declared(frame.content_size)
