"""Sources in memory, and how their bytes may be compressed."""

from __future__ import annotations

import gzip
from collections.abc import Callable

import zstandard

from shared.bulk.inputs.detect import HEAD_BYTES, ReadOptions, detect_format, read_rows
from shared.bulk.inputs.source import ByteSource
from shared.bulk.rows import BadRow, Row


def memory_source(data: bytes, *, at_most: int | None = None) -> ByteSource:
    """at_most: bytes that one read gives."""
    limit = len(data) if at_most is None else at_most
    return ByteSource(len(data), lambda start, length: data[start : start + min(length, limit)])


def read_all(name: str, data: bytes, options: ReadOptions | None = None) -> list[Row | BadRow]:
    options = options or ReadOptions()
    format = detect_format(name, data[:HEAD_BYTES], options)
    return list(read_rows(memory_source(data), format, options))


def _halves(data: bytes) -> tuple[bytes, bytes]:
    return data[: len(data) // 2], data[len(data) // 2 :]


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def _zstd_stream(data: bytes) -> bytes:
    """A frame that does not say how long its content is."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(data) + stream.flush()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "gzip members": lambda data: b"".join(gzip.compress(part) for part in _halves(data)),
    "gzip padded": lambda data: gzip.compress(data) + bytes(512),
    "zstd": _zstd,
    "zstd frames": lambda data: b"".join(_zstd(part) for part in _halves(data)),
    "zstd skippable": lambda data: b"\x50\x2a\x4d\x18\x03\0\0\0abc" + _zstd(data),
    "zstd stream": _zstd_stream,
}
