"""What an engine is: token ids in, token embeddings out. Five lines to implement another runtime.

An engine does not know tokenizers, pooling, queues or where its file came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.contracts import FloatMatrix


@dataclass(frozen=True, slots=True)
class Batch:
    """input_ids, attention_mask: (B, T) int64, right-padded; the mask is 1 on real tokens."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]


class Engine(Protocol):
    """A runtime session over one model. `run` may be called from many threads at once."""

    @property
    def dimensions(self) -> int:
        """H, the width of a token embedding."""

    @property
    def memory_bytes(self) -> int:
        """What holding this engine costs, for the cache's byte budget."""

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Token embeddings (B, T, H) float32; rows of padding hold anything."""

    def close(self) -> None:
        """Free the session. Nobody calls `run` after this."""


def pad(sequences: Sequence[Sequence[int]], pad_token_id: int) -> Batch:
    """Right-pad to the longest. pad([[7, 8], [9]], 0).input_ids == [[7, 8], [9, 0]]."""
    shape = (len(sequences), max(len(ids) for ids in sequences))
    input_ids = np.full(shape, pad_token_id, np.int64)
    mask = np.zeros(shape, np.int64)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return Batch(input_ids, mask)


__all__ = ["Batch", "Engine", "FloatMatrix", "pad"]
