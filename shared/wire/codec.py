"""The wire format between router and backends: msgpack, with arrays encoded as by msgpack-numpy.

The bytes are not trusted, so decoding is strict and never uses msgpack_numpy, whose decoder unpickles.
Does not know HTTP or models.

The format. Everything is one msgpack value, strings are UTF-8 `str`. An array is the map
    {bin "nd": true, bin "type": str "<f4", bin "kind": bin "", bin "shape": [int, ...], bin "data": bin}
in this order, data in C order; for example float32 [[1.0]] is
    85  c4 02 "nd" c3  c4 04 "type" a3 "<f4"  c4 04 "kind" c4 00
        c4 05 "shape" 92 01 01  c4 04 "data" c4 04 00 00 80 3f
Types accepted: <f2 <f4 <f8 |i1 |u1 <i2 <u2 <i4 <u4 <i8 <u8, of 0 to 3 dimensions. No ext types, only
str map keys, at most MAX_DEPTH levels and MAX_ITEMS values.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np

from shared.errors import InvalidInput

CONTENT_TYPE = "application/msgpack"
MAX_ITEMS = 400_000
"""Maximum values in one body: an empty list takes 1 byte on the wire and 56 in memory."""
MAX_DEPTH = 16
MAX_DIMENSIONS = 3

_DTYPES = {
    name: np.dtype(name)
    for name in ("<f2", "<f4", "<f8", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8")
}
_ARRAY_KEYS = {b"nd", b"type", b"kind", b"shape", b"data"}
_SCALARS = {str, bytes, int, float, bool, type(None), np.ndarray}


def pack(value: Any) -> bytes:
    """Encode maps, lists, scalars and arrays. Raises TypeError for others, object arrays included."""
    data: bytes = msgpack.packb(value, default=_encode, buf_size=_estimate(value))
    return data


def unpack(data: bytes, *, max_bytes: int) -> Any:
    """Decode one untrusted value; arrays are read-only views of its bytes.

    Raises InvalidInput, and nothing else, for anything but exactly one value of this format.
    """
    if len(data) > max_bytes:
        raise InvalidInput(f"the body is longer than {max_bytes} bytes")
    try:
        unpacker = _unpacker(data)
        # Skip through it first without building anything: then every declared length is backed by bytes,
        # and a few bytes that announce a huge list cannot make us allocate it.
        unpacker.skip()
        if unpacker.tell() != len(data):
            raise InvalidInput("the body has data after its msgpack value")
        value = _unpacker(data).unpack()
    except (msgpack.UnpackException, ValueError, TypeError, OverflowError):
        raise InvalidInput("the body is not valid msgpack, or contains unsupported types") from None
    _check(value)
    return value


def _encode(value: object) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray) or value.dtype.str not in _DTYPES:
        raise TypeError(f"cannot encode this {type(value).__name__} for the wire")
    # msgpack reads the array's memory directly; only non-C-ordered arrays are copied first.
    data = value.data if value.flags.c_contiguous and value.size else value.tobytes()
    return {
        b"nd": True,
        b"type": value.dtype.str,
        b"kind": b"",
        b"shape": value.shape,
        b"data": data,
    }


def _estimate(value: object) -> int:
    """Initial buffer size that fits the arrays: growing the buffer would copy them again."""
    parts = value.values() if isinstance(value, dict) else (value,)
    return 65_536 + sum(part.nbytes for part in parts if isinstance(part, np.ndarray))


class _Items:
    """Counts values during decoding, so that few bytes cannot expand to much memory."""

    def __init__(self) -> None:
        self._left = MAX_ITEMS

    def on_list(self, items: list[Any]) -> list[Any]:
        self._count(len(items))
        return items

    def on_map(self, items: dict[Any, Any]) -> Any:
        self._count(len(items))
        return _array(items) if b"nd" in items else items

    def _count(self, values: int) -> None:
        self._left -= 1 + values
        if self._left < 0:
            raise ValueError("too many values")


def _unpacker(data: bytes) -> Any:
    items = _Items()
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=True,
        max_buffer_size=max(1, len(data)),
        max_str_len=len(data),
        max_bin_len=len(data),
        max_array_len=MAX_ITEMS,
        max_map_len=MAX_ITEMS,
        max_ext_len=0,
        list_hook=items.on_list,
        object_hook=items.on_map,
    )
    unpacker.feed(data)
    return unpacker


def _array(items: dict[Any, Any]) -> np.ndarray[Any, Any]:
    """Decode an array, trusting none of its metadata. Raises ValueError."""
    data, shape, dtype = items.get(b"data"), items.get(b"shape"), items.get(b"type")
    # `kind` is absent in old versions; "O" (pickles) and "V" (records) are never decoded.
    if not items.keys() <= _ARRAY_KEYS or items[b"nd"] is not True or items.get(b"kind", b"") != b"":
        raise ValueError("unsupported array")
    if type(dtype) is not str or dtype not in _DTYPES or type(data) is not bytes:
        raise ValueError("unsupported array type")
    if type(shape) is not list or len(shape) > MAX_DIMENSIONS:
        raise ValueError("not a shape we read")
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("not a shape we read")
    if math.prod(shape) * _DTYPES[dtype].itemsize != len(data):
        raise ValueError("the length does not match the shape")
    if not data:
        return np.empty(shape, _DTYPES[dtype])  # raises ValueError if other sizes exceed numpy's limits
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)


def _check(value: Any) -> None:
    """Raise InvalidInput if `value` nests deeper than MAX_DEPTH or contains unsupported types."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        deeper: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                if not all(type(key) is str for key in item):
                    raise InvalidInput("map keys must be strings")
                deeper += item.values()
            elif kind is list:
                deeper += item
            elif kind not in _SCALARS:
                raise InvalidInput("the body contains a msgpack extension type, which is not supported")
        level = deeper
    if level:
        raise InvalidInput(f"the body nests deeper than {MAX_DEPTH} levels")
