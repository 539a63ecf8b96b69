"""Number types of vectors: floats, or fewer bits. They mean the same in every dialect.

The dialects do not document their scaling. Here, for a unit vector x of D dimensions, and r, the model's
int8 range of so many dimensions:
    float    x
    base64   the bytes of x, little-endian float32
    int8     round(127 x / r), clipped to -127 to 127: one scale for all texts and dimensions, so that
             dot products keep their order, and r * int8 / 127 is x to within r/254 per dimension
    uint8    int8 + 128, 1 to 255: subtract 128 before comparing
    ubinary  one bit per dimension, 1 where x > 0; eight per byte, the first in the highest bit; the last
             byte is padded with zeros: ceil(D / 8) values, 0 to 255
    binary   ubinary - 128, -128 to 127
Does not know dialects.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared.contracts import FloatMatrix
from shared.vectors import to_int8

NumberType: TypeAlias = Literal["float", "int8", "uint8", "binary", "ubinary"]
EmbeddingType: TypeAlias = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]
Numbers: TypeAlias = NDArray[Any]


def convert(vectors: FloatMatrix, kind: NumberType, int8_range: float = 1.0) -> Numbers:
    """(N, D) unit vectors -> (N, D) or, for bits, (N, ceil(D / 8)), in C order.

    int8_range: the number that becomes 127 in int8, and 255 in uint8.
    """
    return _CONVERT[kind](np.ascontiguousarray(vectors, dtype="<f4"), int8_range)


def encode_base64(numbers: Numbers) -> list[str]:
    """The bytes of each row in base64."""
    return [base64.b64encode(row.data).decode("ascii") for row in np.ascontiguousarray(numbers)]


def _ubinary(vectors: FloatMatrix) -> NDArray[np.uint8]:
    return np.packbits(vectors > 0, axis=1)


def _less_128(values: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Subtract 128 by flipping the highest bit of each byte."""
    return (values ^ np.uint8(0x80)).view(np.int8)


_CONVERT: dict[NumberType, Callable[[FloatMatrix, float], Numbers]] = {
    "float": lambda vectors, _: vectors,
    "int8": to_int8,
    "uint8": lambda vectors, largest: to_int8(vectors, largest).view(np.uint8) ^ np.uint8(0x80),
    "binary": lambda vectors, _: _less_128(_ubinary(vectors)),
    "ubinary": lambda vectors, _: _ubinary(vectors),
}
