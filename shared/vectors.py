"""From token embeddings to the vectors a caller gets: pool, layers, truncate, normalise. Pure numpy.

Rows never mix: a text's vector does not depend on which texts share its batch. That is why pooling
walks the rows instead of using one batched product, whose summation order would move with the
padded length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from shared.contracts import DoubleMatrix, FloatMatrix, FloatVector, SparseRow

Pooling: TypeAlias = Literal["mean", "cls", "max", "last", "weighted_mean", "mean_sqrt_length"]
Poolings: TypeAlias = Pooling | tuple[Pooling, ...]
"""One way of pooling, or several whose results stand one behind the other."""
SparseActivation: TypeAlias = Literal["relu", "log1p_relu"]
Activation: TypeAlias = Literal[
    "identity", "tanh", "relu", "gelu", "sigmoid", "silu", "leaky_relu", "elu", "softplus", "mish"
]

_erf = np.vectorize(math.erf, otypes=[np.float32])


class DenseLayer(msgspec.Struct, frozen=True):
    """weight: (D_out, D_in) float32, as torch stores it. bias: (D_out,) float32 or None."""

    weight: FloatMatrix
    bias: NDArray[np.float32] | None
    activation: Activation


class NormLayer(msgspec.Struct, frozen=True):
    """Each row to mean 0 and variance 1, then times weight plus bias, both (D,) float32."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


class UnitLayer(msgspec.Struct, frozen=True):
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


def is_weighted_sum(pooling: Pooling) -> bool:
    """Whether it is a sum of tokens times numbers that depend on the length alone."""
    return pooling != "max"


def pooling_weights(
    lengths: Sequence[int], poolings: Sequence[Pooling], padded: int
) -> NDArray[np.float32]:
    """(B, P, T) float32, T the padded length: what tokens are multiplied by and summed for P poolings.

    All are whole numbers, of which bfloat16 has the first 256 exactly; `pooling_divisors` does the rest.
    """
    weights = np.zeros((len(lengths), len(poolings), padded), np.float32)
    for row, length in enumerate(lengths):
        for which, pooling in enumerate(poolings):
            match pooling:
                case "cls":
                    weights[row, which, 0] = 1
                case "last":
                    weights[row, which, length - 1] = 1
                case "weighted_mean":
                    weights[row, which, :length] = np.arange(1, length + 1)
                case _:
                    weights[row, which, :length] = 1
    return weights


def pooling_divisors(lengths: Sequence[int], poolings: Sequence[Pooling]) -> NDArray[np.float32]:
    """(B, P, 1) float32: what the sums with `pooling_weights` are divided by."""
    divisors = np.ones((len(lengths), len(poolings), 1), np.float32)
    for which, pooling in enumerate(poolings):
        for row, length in enumerate(lengths):
            match pooling:
                case "mean":
                    divisors[row, which] = length
                case "mean_sqrt_length":
                    divisors[row, which] = math.sqrt(length)
                case "weighted_mean":
                    divisors[row, which] = length * (length + 1) / 2
    return divisors


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


def activate(logits: FloatMatrix, activation: SparseActivation) -> FloatMatrix:
    """A sparse model's weights of its logits, of any shape: log(1 + max(0, x)), or log(1 + that)."""
    weights = np.log1p(np.maximum(logits, 0))
    return np.log1p(weights) if activation == "log1p_relu" else weights


def sparse_row(weights: FloatVector, most: int = 0) -> SparseRow:
    """Those of a text's (V,) weights that are not 0. most: the largest, so many at most; 0: all."""
    indices = np.flatnonzero(weights)
    if 0 < most < len(indices):
        largest = np.argpartition(-weights[indices], most - 1)[:most]
        indices = indices[np.sort(largest)]
    return SparseRow(indices.astype(np.int32), np.ascontiguousarray(weights[indices]))


def max_sim(query: FloatMatrix, document: FloatMatrix) -> float:
    """Sum over a query's unit vectors (Q, D) of the largest cosine with one of a document's (T, D)."""
    return float((query @ document.T).max(axis=1).sum(dtype=np.float64))


def to_int8(vectors: FloatMatrix, largest: float) -> NDArray[np.int8]:
    """(N, D) numbers from -largest to largest -> integers from -127 to 127; others are clipped."""
    scaled: NDArray[np.float32] = np.rint(vectors * np.float32(127 / largest))
    integers: NDArray[np.int8] = np.clip(scaled, -127, 127, out=scaled).astype(np.int8)
    return integers
