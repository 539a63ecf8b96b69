"""How a vector's numbers are written: as floats, or in fewer bits. One meaning in every dialect.

Does not know dialects. Those that have such types do not say how they scale; here, of a unit vector x of
D dimensions:
    float    x
    base64   the bytes of x, little-endian float32
    int8     round(127 x), -127 to 127: the same scale for every text and model, so that dot products
             keep their order, and int8 / 127 is x again, to 1/254 in each dimension
    uint8    int8 + 128, 1 to 255: no direction of its own, subtract 128 before comparing
    ubinary  one bit a dimension, 1 where x > 0; eight to a byte, the first in the highest bit; zeros
             fill the last byte: ceil(D / 8) values, 0 to 255
    binary   ubinary - 128, -128 to 127
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared.contracts import FloatMatrix

NumberType: TypeAlias = Literal["float", "int8", "uint8", "binary", "ubinary"]
EmbeddingType: TypeAlias = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]
Numbers: TypeAlias = NDArray[Any]


def convert(vectors: FloatMatrix, kind: NumberType) -> Numbers:
    """(N, D) unit vectors -> (N, D) or, of bits, (N, ceil(D / 8)), in C order."""
    return _CONVERT[kind](np.ascontiguousarray(vectors, dtype="<f4"))


def encode_base64(numbers: Numbers) -> list[str]:
    """The bytes of each row."""
    return [base64.b64encode(row.data).decode("ascii") for row in np.ascontiguousarray(numbers)]


def _int8(vectors: FloatMatrix) -> NDArray[np.int8]:
    scaled: NDArray[np.float32] = np.rint(vectors * np.float32(127))
    return scaled.astype(np.int8)


def _ubinary(vectors: FloatMatrix) -> NDArray[np.uint8]:
    return np.packbits(vectors > 0, axis=1)


def _less_128(values: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Turning the highest bit of a byte is what moves it by 128 between the two ranges."""
    return (values ^ np.uint8(0x80)).view(np.int8)


_CONVERT: dict[NumberType, Callable[[FloatMatrix], Numbers]] = {
    "float": lambda vectors: vectors,
    "int8": _int8,
    "uint8": lambda vectors: _int8(vectors).view(np.uint8) ^ np.uint8(0x80),
    "binary": lambda vectors: _less_128(_ubinary(vectors)),
    "ubinary": _ubinary,
}
