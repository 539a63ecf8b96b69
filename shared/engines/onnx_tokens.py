"""Engines on the CPU for models that have a number for each word, or a vector for each token.

Both run the same graph as other models, without pooling. Do not know tokenizers or what is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from shared.contracts import FloatMatrix, SparseRow, Tokens
from shared.engines.onnx import OnnxEngine, open_session
from shared.errors import InvalidArtefact
from shared.models.manifest import Manifest
from shared.vectors import activate, sparse_row

_BLOCK_NUMBERS = 2_000_000
"""Logits that the head computes at a time, 8 MB: those of 65 tokens for a vocabulary of 30,522. All of a
text of 512 tokens are 62 MB."""


class TokenVectorsEngine:
    """Vectors of all tokens, (T, H) for each input: dense layers come after. Raises as OnnxEngine."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._graph = OnnxEngine(folder, manifest)
        self.dimensions = self._graph.dimensions
        self.memory_bytes = self._graph.memory_bytes

    def run(self, sequences: Sequence[Tokens]) -> list[FloatMatrix]:
        """The (T, H) of each sequence."""
        hidden = self._graph.output(sequences)
        return [row[: len(tokens)] for row, tokens in zip(hidden, sequences, strict=True)]

    def close(self) -> None:
        """Free the session."""
        self._graph.close()


class SparseEngine:
    """Weights of a vocabulary's V words, those of each input that are not 0.

    The last layer makes V logits of each token. It is a graph of its own, which runs over blocks of
    tokens of all inputs together: of the logits only a block is ever held, and padding has none.

    Raises InvalidArtefact if a file is not such a graph, or they do not fit together.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        assert manifest.sparse is not None, "a sparse model's manifest describes its head"
        self._described = manifest.sparse
        self._graph = OnnxEngine(folder, manifest)
        path = folder / manifest.sparse.file
        try:
            self._head: ort.InferenceSession | None = open_session(path)
            width = self._head.get_inputs()[0].shape[-1]
            self.dimensions = int(self._head.get_outputs()[0].shape[-1])
        except Exception as error:  # onnxruntime raises a family of its own, rooted at Exception
            raise InvalidArtefact(f"{path.name} is not a graph this version runs") from error
        if width != self._graph.dimensions:
            raise InvalidArtefact(f"{path.name} does not fit {manifest.model_file}")
        self._block = max(16, _BLOCK_NUMBERS // self.dimensions)
        self.memory_bytes = self._graph.memory_bytes + path.stat().st_size

    def run(self, sequences: Sequence[Tokens]) -> list[SparseRow]:
        """The weights of each sequence's words."""
        output = self._graph.output(sequences)
        lengths = [len(tokens) for tokens in sequences]
        hidden = np.concatenate([row[:length] for row, length in zip(output, lengths, strict=True)])
        del output
        rows: list[SparseRow] = []
        ends = np.cumsum(lengths)
        whole: NDArray[np.float64] | None = None
        for start in range(0, len(hidden), self._block):
            logits = self._logits(hidden[start : start + self._block])
            at = 0
            while at < len(logits):
                end = min(len(logits), int(ends[len(rows)]) - start)
                part = self._pooled(logits[at:end])
                whole = part if whole is None else self._together(whole, part)
                if start + end == ends[len(rows)]:
                    rows.append(self._finished(whole))
                    whole = None
                at = end
        return rows

    def close(self) -> None:
        """Free both sessions."""
        self._head = None
        self._graph.close()

    def _logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        assert self._head is not None, "run after close"
        logits: NDArray[np.float32] = self._head.run(None, {"hidden": hidden})[0]
        return logits

    def _pooled(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """(T, V) -> (V,): the largest logit, or in float64 the sum, whose order must not matter."""
        if self._described.pooling == "max":
            largest: NDArray[np.float64] = logits.max(axis=0).astype(np.float64)
            return largest
        sums: NDArray[np.float64] = activate(logits, self._described.activation).sum(
            axis=0, dtype=np.float64
        )
        return sums

    def _together(self, one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.maximum(one, other) if self._described.pooling == "max" else one + other

    def _finished(self, pooled: NDArray[np.float64]) -> SparseRow:
        values = pooled.astype(np.float32)
        if self._described.pooling == "max":  # the activation grows with its input: the largest suffices
            values = activate(values, self._described.activation)
        return sparse_row(values, self._described.most)
