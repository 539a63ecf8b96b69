"""Decompresses request bodies (Content-Encoding gzip, deflate or zstd) up to a limit.

Does not know how a body is received, or its content.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Literal, TypeAlias

from shared.compression import Truncated, unpack
from shared.errors import InvalidInput, UnsupportedMediaType

Coding: TypeAlias = Literal["gzip", "deflate", "zstd"]

_STEP_BYTES = 256 * 1024
"""Size of a step; up to 8 MiB where a few bytes expand to many."""

_CODINGS: dict[str, Coding | None] = {
    "gzip": "gzip",
    "x-gzip": "gzip",
    "deflate": "deflate",
    "zstd": "zstd",
    "identity": None,
    "": None,
}
_SUPPORTED = "send gzip, deflate or zstd, or none"
_FEED_BYTES = 1024
"""Fed at a time: deflate expands at most 1,032 times."""


def content_coding_of(content_encoding: str) -> Coding | None:
    """The header's value -> the body's coding; None: uncompressed. Raises UnsupportedMediaType."""
    named = [each.strip().lower() for each in content_encoding.split(",")]
    applied = [each for each in named if each not in ("", "identity")]
    if len(applied) > 1:
        raise UnsupportedMediaType(
            f"the body is compressed more than once, by its Content-Encoding: {_SUPPORTED}"
        )
    coding = applied[0] if applied else ""
    if coding not in _CODINGS:
        name = coding if coding.isascii() and coding.isalnum() and len(coding) < 20 else "of this kind"
        raise UnsupportedMediaType(f"Content-Encoding {name} is not supported: {_SUPPORTED}")
    return _CODINGS[coding]


class Decompressor:
    """Decompresses `data` step by step; each step may run in another thread."""

    def __init__(self, data: bytes, coding: Coding) -> None:
        self._coding = coding
        self._pieces = _inflate(data) if coding == "deflate" else unpack((data,), coding)

    def step(self) -> bytes:
        """About _STEP_BYTES more; empty at the end. Raises InvalidInput if invalid or truncated."""
        found = bytearray()
        try:
            while len(found) < _STEP_BYTES and (piece := next(self._pieces, None)) is not None:
                found += piece
        except Truncated:
            raise InvalidInput(
                f"the body is not complete and valid {self._coding}, which its Content-Encoding names"
            ) from None
        return bytes(found)


def _inflate(data: bytes) -> Iterator[bytes]:
    """zlib's format (RFC 9110), or raw deflate, which some clients send. Raises Truncated."""
    is_zlib = len(data) > 1 and data[0] & 0x0F == zlib.DEFLATED and int.from_bytes(data[:2]) % 31 == 0
    stream = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
    try:
        for start in range(0, len(data), _FEED_BYTES):
            yield stream.decompress(data[start : start + _FEED_BYTES])
            if stream.unused_data:
                raise Truncated
    except zlib.error:
        raise Truncated from None
    if data and not stream.eof:
        raise Truncated
