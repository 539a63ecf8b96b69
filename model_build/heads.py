"""Gives each attention head one more coordinate, in numpy.

It does not know graphs, or what the coordinate is for: see masked_keys.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def widen_heads(tensor: NDArray[np.float32], heads: int, fill: float = 0) -> NDArray[np.float32]:
    """(..., heads * D) -> (..., heads * (D + 1)), the last coordinate of each head being `fill`.

    >>> widen_heads(np.float32([1, 2, 3, 4]), heads=2, fill=9)
    array([1., 2., 9., 3., 4., 9.], dtype=float32)
    """
    apart = tensor.reshape(*tensor.shape[:-1], heads, -1)
    added = np.full((*apart.shape[:-1], 1), fill, tensor.dtype)
    return np.concatenate([apart, added], axis=-1).reshape(*tensor.shape[:-1], -1)
