"""From token embeddings to the vectors a caller gets: pool, layers, truncate, normalise. Pure numpy.

Rows never mix: a text's vector does not depend on which texts share its batch. That is why pooling
walks the rows instead of using one batched product, whose summation order would move with the
padded length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared.contracts import DoubleMatrix, FloatMatrix

Pooling: TypeAlias = Literal["mean", "cls", "max", "last", "weighted_mean", "mean_sqrt_length"]
Poolings: TypeAlias = Pooling | tuple[Pooling, ...]
"""One way of pooling, or several whose results stand one behind the other."""
Activation: TypeAlias = Literal[
    "identity", "tanh", "relu", "gelu", "sigmoid", "silu", "leaky_relu", "elu", "softplus", "mish"
]

_erf = np.vectorize(math.erf, otypes=[np.float32])


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """weight: (D_out, D_in) float32, as torch stores it. bias: (D_out,) float32 or None."""

    weight: FloatMatrix
    bias: NDArray[np.float32] | None
    activation: Activation


@dataclass(frozen=True, slots=True)
class NormLayer:
    """Each row to mean 0 and variance 1, then times weight plus bias, both (D,) float32."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class UnitLayer:
    """Each row to unit length, where another layer follows."""


Layer: TypeAlias = DenseLayer | NormLayer | UnitLayer


def poolings_of(pooling: Poolings) -> tuple[Pooling, ...]:
    """One way of pooling as a tuple of itself."""
    return (pooling,) if isinstance(pooling, str) else pooling


def pool(hidden: NDArray[np.float32], lengths: list[int], pooling: Poolings) -> FloatMatrix:
    """Token embeddings (B, T, H) and the real length of each row -> (B, P * H) float32 of P poolings."""
    parts = [_pool(hidden, lengths, each) for each in poolings_of(pooling)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _pool(hidden: NDArray[np.float32], lengths: list[int], pooling: Pooling) -> FloatMatrix:
    pooled = np.empty((hidden.shape[0], hidden.shape[2]), np.float32)
    for row, length in enumerate(lengths):
        tokens = hidden[row, :length]
        match pooling:
            case "mean":
                tokens.mean(axis=0, out=pooled[row])
            case "cls":
                pooled[row] = tokens[0]
            case "max":
                tokens.max(axis=0, out=pooled[row])
            case "last":
                pooled[row] = tokens[-1]
            case "weighted_mean":
                weights = np.arange(1, length + 1, dtype=np.float32)
                pooled[row] = (tokens * weights[:, None]).sum(axis=0) / weights.sum()
            case "mean_sqrt_length":
                pooled[row] = tokens.sum(axis=0) / np.float32(math.sqrt(length))
    return pooled


ACTIVATIONS: dict[Activation, Callable[[FloatMatrix], FloatMatrix]] = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + _erf(x * np.float32(math.sqrt(0.5)))) / 2,
    "sigmoid": lambda x: sigmoid(x).astype(np.float32),
    "silu": lambda x: x * sigmoid(x).astype(np.float32),
    "leaky_relu": lambda x: np.where(x > 0, x, x * np.float32(0.01)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "softplus": lambda x: np.logaddexp(x, np.float32(0)),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, np.float32(0))),
}
"""As torch's modules of these names without arguments."""


def apply_layer(vectors: FloatMatrix, layer: Layer) -> FloatMatrix:
    """(B, D_in) -> (B, D_out)."""
    match layer:
        case DenseLayer():
            projected: FloatMatrix = vectors @ layer.weight.T
            if layer.bias is not None:
                projected += layer.bias
            return ACTIVATIONS[layer.activation](projected)
        case NormLayer():
            centred = vectors - vectors.mean(axis=1, keepdims=True)
            deviations = np.sqrt((centred * centred).mean(axis=1, keepdims=True) + _EPSILON)
            normed: FloatMatrix = centred / deviations * layer.weight + layer.bias
            return normed
        case UnitLayer():
            return finish(vectors, None, normalize=True)


_EPSILON = np.float32(1e-5)  # of torch's LayerNorm


def sigmoid(logits: FloatMatrix) -> DoubleMatrix:
    """Elementwise; never overflows. In float64: in float32 all from 17 on would be exactly 1."""
    exponents = np.exp(-np.abs(logits.astype(np.float64)))
    scores: DoubleMatrix = np.where(logits < 0, exponents, 1) / (1 + exponents)
    return scores


def softmax(logits: FloatMatrix) -> DoubleMatrix:
    """Over the last axis, in float64."""
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    shares: DoubleMatrix = exponents / exponents.sum(axis=-1, keepdims=True)
    return shares


def rows_not_finite(rows: FloatMatrix) -> list[int]:
    """Which rows hold NaN or an infinity, or are so large that their length is one."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(rows, axis=1)
    found: list[int] = np.flatnonzero(~np.isfinite(lengths)).tolist()
    return found


def finish(vectors: FloatMatrix, dimensions: int | None, normalize: bool) -> FloatMatrix:
    """Truncate to `dimensions`, then scale each row to unit length if asked: in that order.

    A truncated unit vector is shorter than one, so normalising first would hand out wrong cosines.
    Rows of zeros stay zero.
    """
    if dimensions is not None:
        vectors = vectors[:, :dimensions]
    if normalize:
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(norms, np.float32(1e-12))
    return np.ascontiguousarray(vectors)


def to_int8(vectors: FloatMatrix, largest: float) -> NDArray[np.int8]:
    """(N, D) numbers from -largest to largest -> integers from -127 to 127; others are clipped."""
    scaled: NDArray[np.float32] = np.rint(vectors * np.float32(127 / largest))
    integers: NDArray[np.int8] = np.clip(scaled, -127, 127, out=scaled).astype(np.int8)
    return integers
