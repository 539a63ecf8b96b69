"""Vectors of random numbers, the same ones each time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from shared.contracts import FloatMatrix

D = 8


def vectors_for(rows: int, seed: int = 0) -> FloatMatrix:
    vectors = np.random.default_rng(seed).standard_normal((rows, D)).astype(np.float32)
    unit: FloatMatrix = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def all_vectors(parts: list[pa.Table]) -> FloatMatrix:
    return np.concatenate([vectors_for(len(part), index) for index, part in enumerate(parts)])
