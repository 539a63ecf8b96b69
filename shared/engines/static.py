"""Static embeddings: a table with one row per token; a text's vector is the mean of its tokens' rows.

Runs on the CPU with numpy alone. Does not know tokenizers, or where the table came from. The model file
is safetensors with these tensors, of which only the first is required:

    table    (R, D) float32, float16 or int8
    rows     (V,) int32: token id -> row of the table; -1: the token is left out of the mean
    weights  (V,) float32: token id -> factor of its row

Without `rows` a token's id is its row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from shared.contracts import FloatMatrix, TokenPair, Tokens
from shared.engines.panics import Panicked, panics_are_errors
from shared.errors import InvalidArtefact
from shared.models.manifest import Manifest

_DTYPES: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "I8": np.int8}

_AT_ONCE = 1_024
"""Tokens whose rows are copied from the table at a time: bounds the memory for a long text."""

_Table: TypeAlias = NDArray[Any]


class StaticEngine:
    """Computes mean vectors from a memory-mapped table, whose pages processes share.

    Raises InvalidArtefact if the manifest's model file is not such a table.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        path = folder / manifest.model_file
        try:
            with panics_are_errors():
                self._table, self._rows, self._weights = _read(path)
        except (SafetensorError, Panicked, OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidArtefact(f"{path.name} is not a table of static embeddings") from error
        self.dimensions = int(self._table.shape[1])
        self.memory_bytes = path.stat().st_size

    def run(self, sequences: Sequence[Tokens]) -> FloatMatrix:
        """Mean vectors, (N, D) float32, not normalised.

        Tokens whose row is -1 are left out of sum and count. A sequence without other tokens gets zeros.
        """
        vectors = np.zeros((len(sequences), self.dimensions), np.float32)
        for vector, tokens in zip(vectors, sequences, strict=True):
            ids = np.asarray(tokens.ids if isinstance(tokens, TokenPair) else tokens, np.int64)
            if self._rows is not None:
                ids = ids[self._rows[ids] >= 0]
            for start in range(0, len(ids), _AT_ONCE):
                vector += self._sum(ids[start : start + _AT_ONCE])
            vector /= max(1, len(ids))
        return vectors

    def close(self) -> None:
        """Release the table. It is unmapped when the last reference to it is gone."""
        self._table = self._table[:0]

    def _sum(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        taken = self._table.take(ids if self._rows is None else self._rows[ids], axis=0)
        if self._weights is not None:
            taken = taken * self._weights[ids][:, None]
        total: NDArray[np.float32] = np.add.reduce(taken, axis=0, dtype=np.float32)
        return total


def _read(path: Path) -> tuple[_Table, NDArray[np.int32] | None, NDArray[np.float32] | None]:
    """The table, `rows` and `weights`. Raises ValueError, and the errors of safetensors."""
    with safe_open(path, framework="numpy") as file:  # checks that shapes, types and offsets fit
        names = set(file.keys())
        table = file.get_slice("table")
        shape, dtype = tuple(table.get_shape()), _DTYPES[table.get_dtype()]
        rows = file.get_tensor("rows") if "rows" in names else None
        weights = file.get_tensor("weights") if "weights" in names else None
    if len(shape) != 2 or 0 in shape:
        raise ValueError("the table is no matrix")
    if rows is not None and (rows.dtype != np.int32 or rows.ndim != 1 or rows.max() >= shape[0]):
        raise ValueError("rows are not rows of the table")
    if weights is not None and weights.shape != (shape[:1] if rows is None else rows.shape):
        raise ValueError("weights are not one a token")
    with path.open("rb") as stream:  # safetensors only copies; to map, read the offset
        length = int.from_bytes(stream.read(8), "little")
        begin, _ = json.loads(stream.read(length))["table"]["data_offsets"]
    offset = 8 + length + begin
    mapped: _Table = np.memmap(path, dtype, "r", offset, shape)
    return mapped.view(np.ndarray), rows, weights
