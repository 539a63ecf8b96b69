"""Quantises float32 matrices to INT8 and scales in numpy, bit for bit equal on every machine.

It does not know graphs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LARGEST_PAIR = 128  # 255 * 128 <= 32767 < 255 * 129


def quantize_columns(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(K, N) float32 -> (K, N) int8 and (N,) scales, weight ~ int8 * scale, safe in pairs.

    For each even k, the same-signed parts of rows k and k + 1 sum to at most 128 in every column
    (see `quantize_per_row`). An odd K is paired with a row of zeros.
    """
    largest = np.abs(weight).max(axis=0)
    scale = np.maximum(np.maximum(largest, _largest_pair(weight)) / 127, 1e-12).astype(np.float32)
    quantized = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    # Two roundings add at most one to a sum of at most 127.
    assert _largest_pair(quantized.astype(np.float32)).max() <= _LARGEST_PAIR
    return quantized, scale


def quantize_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(V, H) float32 -> (V, H) int8 and (V, 1) scales, table ~ int8 * scale."""
    # Word embeddings are up to half of a model: a copy at a time.
    largest = np.maximum(table.max(axis=1, keepdims=True), -table.min(axis=1, keepdims=True))
    scale = np.maximum(largest / 127, 1e-12).astype(np.float32)
    scaled = table / scale
    return np.rint(scaled, out=scaled).astype(np.int8), scale


def _largest_pair(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(K, N) -> (N,): the largest sum of magnitudes of one sign in rows 0+1, 2+3, ..."""
    even = np.pad(weight, ((0, weight.shape[0] % 2), (0, 0)))
    pairs = even.reshape(-1, 2, weight.shape[1])
    positive = np.maximum(pairs, 0).sum(axis=1).max(axis=0)
    negative = np.maximum(-pairs, 0).sum(axis=1).max(axis=0)
    largest: NDArray[np.float32] = np.maximum(positive, negative)
    return largest
