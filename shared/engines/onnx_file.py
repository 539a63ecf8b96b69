"""An ONNX file's graph without its large weights, which a session then maps from the file itself.

onnxruntime reads a file into memory and copies each tensor out of it. Weights that lie outside of the
graph it maps instead: so these are said to lie outside, namely at their place in the same file.

Reads protobuf (https://protobuf.dev/programming-guides/encoding) as far as it must. Does not know
onnxruntime, or what a graph computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

LARGE_BYTES = 4096
"""Smaller weights stay in the graph: their place is told in about a hundred bytes."""

# Field numbers and values of onnx.proto.
_GRAPH, _INITIALIZER = 7, 5
_DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 2, 9, 13, 14
_EXTERNAL = 1
# Of one byte. Others would lie wherever the file has them, and not where a processor wants them.
_UINT8, _INT8 = 2, 3

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_FIXED = {_FIXED_64: 8, _FIXED_32: 4}


class Buffer(Protocol):
    """bytes, or a mapped file."""

    def __getitem__(self, index: slice, /) -> bytes: ...
    def __len__(self) -> int: ...


def graph_of(file: Buffer, name: str) -> bytes | None:
    """The model with the place of its large 8-bit weights in the file `name` instead of the weights.

    None if it has none. file: that file's content. Raises ValueError if it is no protobuf message.
    """
    parts = []
    for number, start, content, end in _fields(file, 0, len(file)):
        if number != _GRAPH:
            parts.append(file[start:end])
        elif (smaller := _smaller_graph(file, content, end, name)) is not None:
            parts.append(_message(_GRAPH, smaller))
        else:
            return None
    return b"".join(parts)


def _smaller_graph(file: Buffer, start: int, end: int, name: str) -> bytes | None:
    parts = []
    kept = start  # what is not yet copied
    for number, at, content, after in _fields(file, start, end):
        if number != _INITIALIZER or after - content <= LARGE_BYTES:
            continue
        if (elsewhere := _smaller_tensor(file, content, after, name)) is not None:
            parts += [file[kept:at], _message(_INITIALIZER, elsewhere)]
            kept = after
    return b"".join((*parts, file[kept:end])) if parts else None


def _smaller_tensor(file: Buffer, start: int, end: int, name: str) -> bytes | None:
    """None if its numbers stay in the graph."""
    parts, place, is_8_bit = [], None, False
    for number, at, content, after in _fields(file, start, end):
        if number in (_EXTERNAL_DATA, _DATA_LOCATION):
            return None
        if number == _RAW_DATA:
            place = {"location": name, "offset": str(content), "length": str(after - content)}
            continue
        if number == _DATA_TYPE:
            is_8_bit = _varint(file, content)[0] in (_UINT8, _INT8)
        parts.append(file[at:after])
    if place is None or not is_8_bit:
        return None
    entries = [
        _message(_EXTERNAL_DATA, _message(1, key.encode()) + _message(2, value.encode()))
        for key, value in place.items()
    ]
    location = _encoded(_DATA_LOCATION << 3 | _VARINT) + _encoded(_EXTERNAL)
    return b"".join((*parts, *entries, location))


def _fields(file: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Of the message there: number, and where the field, its content and what is behind it begin."""
    at = start
    while at < end:
        key, content = _varint(file, at)
        kind = key & 7
        if kind == _BYTES:
            size, content = _varint(file, content)
            after = content + size
        elif kind == _VARINT:
            _, after = _varint(file, content)
        elif kind in _FIXED:
            after = content + _FIXED[kind]
        else:
            raise ValueError("a field of no kind that messages have")
        if after > end:
            raise ValueError("a field that is longer than its message")
        yield key >> 3, at, content, after
        at = after


def _varint(file: Buffer, at: int) -> tuple[int, int]:
    """A number, and where what is behind it begins."""
    number = 0
    for count, byte in enumerate(file[at : at + 10]):
        number |= (byte & 127) << 7 * count
        if byte < 128:
            return number, at + count + 1
    raise ValueError("a number without an end")


def _encoded(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes((*parts, number))


def _message(number: int, content: bytes) -> bytes:
    """A field of bytes."""
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + content
