"""From token embeddings to the vectors a caller gets: pool, dense, truncate, normalise. Pure numpy.

Rows never mix: a text's vector does not depend on which texts share its batch. That is why pooling
walks the rows instead of using one batched product, whose summation order would move with the
padded length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared.contracts import DoubleMatrix, FloatMatrix

Pooling: TypeAlias = Literal["mean", "cls", "max", "last", "weighted_mean"]
Activation: TypeAlias = Literal["identity", "tanh", "relu"]


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """weight: (D_out, D_in) float32, as torch stores it. bias: (D_out,) float32 or None."""

    weight: FloatMatrix
    bias: NDArray[np.float32] | None
    activation: Activation


def pool(hidden: NDArray[np.float32], lengths: list[int], pooling: Pooling) -> FloatMatrix:
    """Token embeddings (B, T, H) and the real length of each row -> (B, H) float32."""
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
    return pooled


def apply_dense(vectors: FloatMatrix, layer: DenseLayer) -> FloatMatrix:
    """(B, D_in) -> (B, D_out)."""
    projected: FloatMatrix = vectors @ layer.weight.T
    if layer.bias is not None:
        projected += layer.bias
    match layer.activation:
        case "identity":
            return projected
        case "tanh":
            return np.tanh(projected)
        case "relu":
            return np.maximum(projected, 0)


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
