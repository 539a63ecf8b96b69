"""Payloads that no reader of msgpack may believe."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np
import pytest

ONE = (
    b"\x85\xc4\x02nd\xc3\xc4\x04type\xa3<f4\xc4\x04kind\xc4\x00"
    b"\xc4\x05shape\x92\x01\x01\xc4\x04data\xc4\x04\x00\x00\x80\x3f"
)


def nd(**changes: Any) -> bytes:
    """The encoding of float32 [[1.0]], with keys changed, or removed by ...."""
    fields: dict[bytes, Any] = {
        b"nd": True,
        b"type": "<f4",
        b"kind": b"",
        b"shape": [1, 1],
        b"data": b"\x00\x00\x80\x3f",
    }
    fields |= {key.encode(): value for key, value in changes.items()}
    packed: bytes = msgpack.packb({k: v for k, v in fields.items() if v is not ...})
    return packed


class Pickled:
    """Unpickling it would show."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("unpickled",))


def deep(levels: int, opening: bytes) -> bytes:
    return opening * levels + b"\xc0"


HOSTILE = {
    "object array as msgpack-numpy writes it": msgpack.packb(
        np.array([Pickled()], dtype=object), default=msgpack_numpy.encode
    ),
    "kind O": nd(kind=b"O"),
    "kind V": nd(kind=b"V", type=[["x", "<f4"]]),
    "kind str": nd(kind=""),
    "type O": nd(type="|O", shape=[1], data=b"\x01" * 8),
    "type O, empty": nd(type="|O", shape=[0], data=b""),
    "type list": nd(type=[["x", "|O"]]),
    "type bytes": nd(type=b"<f4"),
    "type missing": nd(type=...),
    "type complex": nd(type="<c8", shape=[1], data=b"\0" * 8),
    "type big-endian": nd(type=">f4"),
    "type string": nd(type="<U1"),
    "type datetime": nd(type="<M8[s]", shape=[1], data=b"\0" * 8),
    "type with commas": nd(type="<f4,<f4"),
    "nd false": nd(nd=False),
    "nd one": nd(nd=1),
    "another key": nd(more=1),
    "data too short": nd(data=b"\x00\x00\x80"),
    "data too long": nd(data=b"\x00" * 5),
    "data str": nd(data="abcd"),
    "data missing": nd(data=...),
    "shape missing": nd(shape=...),
    "shape int": nd(shape=1),
    "shape negative": nd(shape=[-1, -1]),
    "shape negative, product right": nd(shape=[-1, -1, 1]),
    "shape bool": nd(shape=[True, True]),
    "shape float": nd(shape=[1.0, 1.0]),
    "shape huge": nd(shape=[2**32, 2**32]),
    "shape overflowing to 4 bytes in 64 bits": nd(shape=[2**63, 2**1 + 1]),
    "shape huge but empty": nd(shape=[2**62, 2**62, 0], data=b""),
    "shape beyond 64 bits": nd(shape=[2**64 - 1, 2**64 - 1, 0], data=b""),
    "rank 4": nd(shape=[1, 1, 1, 1]),
    "complex of msgpack-numpy": msgpack.packb({b"complex": True, b"data": "1j"}),
    "bytes as keys": msgpack.packb({b"a": 1}),
    "ints as keys": msgpack.packb({1: 1}),
    "array as key": b"\x81" + ONE + b"\x01",
    "list as key": b"\x81\x90\x01",
    "nothing": b"",
    "truncated": ONE[:-1],
    "trailing byte": ONE + b"\x00",
    "two values": ONE + ONE,
    "reserved byte": b"\xc1",
    "deep lists": deep(200, b"\x91"),
    "very deep lists": deep(100_000, b"\x91"),
    "deep maps": deep(200, b"\x81\xa1a"),
    "deep keys": deep(200, b"\x81"),
    "huge list declared": b"\xdd\xff\xff\xff\xff",
    "huge lists declared in huge lists": b"\xdd\x00\x05\xff\xff" * 900,
    "huge map declared": b"\xdf\xff\xff\xff\xff",
    "huge str declared": b"\xdb\xff\xff\xff\xff",
    "huge bin declared": b"\xc6\xff\xff\xff\xff",
    "many empty lists": b"\xdd" + struct.pack(">I", 900_000) + b"\x90" * 900_000,
    "many lists of many": b"\x94" + (b"\xdd" + struct.pack(">I", 150_000) + b"\xc0" * 150_000) * 4,
    "ext": msgpack.packb(msgpack.ExtType(5, b"x")),
    "ext, empty": msgpack.packb(msgpack.ExtType(5, b"")),
    "ext in a list": msgpack.packb([msgpack.ExtType(5, b"xx")]),
    "timestamp": msgpack.packb(msgpack.Timestamp(1)),
    "str that is not UTF-8": b"\xa1\xff",
}
