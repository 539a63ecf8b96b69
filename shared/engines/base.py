"""What an engine is: token ids in, one row an input out. Four members to implement another runtime.

An engine does not know tokenizers, queues, other models or where its files came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from shared.contracts import LateIds, TokenPair, Tokens
from shared.models.manifest import Manifest, Target

Rows: TypeAlias = Any
"""What a model makes of B inputs: (B, D) float32; of a sparse model a list of B SparseRow; of a
multi-vector model a list with the (T, D) float32 of each input's tokens. Which, its task says."""


class Capacity(msgspec.Struct, frozen=True):
    """What an engine runs best with: the threads that call it at once, and a micro-batch's limits.

    target_tokens: batch_tokens of targets that another engine runs.
    """

    threads: int
    batch_tokens: int
    batch_texts: int
    target_tokens: dict[Target, int] = {}

    def tokens_for(self, target: Target) -> int:
        """Padded tokens of a micro-batch of that target."""
        return self.target_tokens.get(target, self.batch_tokens)


class Batch(msgspec.Struct, frozen=True):
    """All (B, T) int64, right-padded. attention_mask: 1 on real tokens. token_type_ids: 0 or 1."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]


class Engine(Protocol):
    """A runtime session over one model. `run` may be called from many threads at once."""

    @property
    def dimensions(self) -> int:
        """D, the width of a row, or of a token's vector."""

    @property
    def memory_bytes(self) -> int:
        """What holding this engine costs, for the cache's byte budget."""

    def run(self, sequences: Sequence[Tokens]) -> Rows:
        """B sequences -> (B, D) float32: pooled token embeddings, or a cross-encoder's logits.

        Of a model whose inputs have more than one vector, or few numbers of many, a list.

        A row does not depend on the others.
        """

    def close(self) -> None:
        """Free the session. Nobody calls `run` after this."""


OpenEngine: TypeAlias = Callable[[Path, Manifest], Engine]
"""The verified files of a model -> its engine. Raises InvalidArtefact."""


def pad(sequences: Sequence[Tokens], pad_token_id: int, longest: int = 0) -> Batch:
    """Right-pad to the longest, or to `longest`. pad([[7, 8], [9]], 0).input_ids == [[7, 8], [9, 0]]."""
    shape = (len(sequences), longest or max(len(tokens) for tokens in sequences))
    batch = Batch(
        np.full(shape, pad_token_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    )
    for row, tokens in enumerate(sequences):
        length = len(tokens)
        if isinstance(tokens, TokenPair):
            batch.input_ids[row, :length] = tokens.ids
            batch.token_type_ids[row, :length] = tokens.type_ids
        else:
            batch.input_ids[row, :length] = tokens
        attended = tokens.attended if isinstance(tokens, LateIds) else length
        batch.attention_mask[row, :attended] = 1
    return batch
