"""Runs a built model the way a server on this machine does: tokenise, plan, run, finish.

It does not know the original, gates or where the model came from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.contracts import (
    DoubleMatrix,
    EmbedRequest,
    EmbedSparseRequest,
    EmbedTokensRequest,
    FloatMatrix,
    InputType,
    PredictRequest,
    RerankRequest,
    SparseRow,
    Tokens,
)
from shared.engines.base import Capacity, OpenEngine, Rows
from shared.engines.cpu import capacity, open_cpu_engine
from shared.engines.torch import TorchEngine, gpu_memory
from shared.engines.torch import capacity as gpu_capacity
from shared.errors import BlitzError, InvalidArtefact
from shared.inference.finite import not_finite
from shared.inference.model import Model, load_model
from shared.inference.schedule import plan_batches
from shared.inference.steps import completed
from shared.models.manifest import Manifest, Target
from shared.vectors import finish, sigmoid, softmax

_COMPARED = 96
_BATCH = 32


class Served:
    """Loads the model in `folder`. Raises InvalidArtefact if the files do not match `manifest`.

    Every method raises it too if the model returns NaN or infinite numbers.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, half: bool = False) -> None:
        """half: multiply in FP16 on the CPU: slow, but it overflows where a GPU does."""
        open_engine, self._limits = _runtime(manifest.target)
        if half:
            open_engine = functools.partial(TorchEngine, device="cpu", dtype=torch.float16)
        self.model: Model = load_model(folder, manifest, open_engine)

    def embed(self, texts: Sequence[str], prompt: str | None) -> FloatMatrix:
        """(N, D) float32 unit vectors."""
        return finish(self._run(self._tokenize(texts, prompt)), None, normalize=True)

    def encode(self, texts: Sequence[str], input_type: InputType) -> list[Any]:
        """Of a sparse model a SparseRow each, of a multi-vector model (T, D) unit vectors."""
        return self._rows(self._tokenize_as(texts, input_type))

    def difference_by_batch(self, texts: Sequence[str]) -> float:
        """Largest change of a number, of `encode`, between a text alone and among 31 others."""
        compared = sorted(self._tokenize_as(texts[:_COMPARED], "document"), key=len)
        largest = 0.0
        for start in range(0, len(compared), _BATCH):
            batch = compared[start : start + _BATCH]
            for tokens, among in zip(batch, self.model.run(batch), strict=True):
                difference = _difference(self.model.run([tokens])[0], among)
                largest = float(np.maximum(largest, difference))
        return largest

    def tokens(self, text: str) -> int:
        """How many tokens of `text` it reads, special ones included, without a prompt."""
        return len(self._tokenize([text], "")[0])

    def score(self, pairs: Sequence[tuple[str, str]]) -> FloatMatrix:
        """(N, L) float32 logits."""
        return self._run(self._tokenize_pairs(pairs))

    def vector_difference(self, texts: Sequence[str]) -> float:
        """Largest change of any unit vector's element between a text alone and among 31 others."""
        return self._batch_difference(
            self._tokenize(texts, None), lambda rows: finish(rows, None, normalize=True)
        )

    def score_difference(self, pairs: Sequence[tuple[str, str]]) -> float:
        """Largest change of any score between a pair alone and among 31 others."""
        return self._batch_difference(self._tokenize_pairs(pairs), probabilities)

    def close(self) -> None:
        """Free the model."""
        self.model.close()

    def _tokenize_as(self, texts: Sequence[str], input_type: InputType) -> Sequence[Tokens]:
        name, asked = self.model.manifest.name, tuple(texts)
        if self.model.manifest.task == "sparse":
            sparse = EmbedSparseRequest(name, asked, input_type=input_type)
            return completed(self.model.tokenize_sparse(sparse))
        late = EmbedTokensRequest(name, asked, input_type=input_type)
        return completed(self.model.tokenize_late(late))

    def _tokenize(self, texts: Sequence[str], prompt: str | None) -> Sequence[Tokens]:
        request = EmbedRequest(self.model.manifest.name, tuple(texts), prompt_name=prompt)
        return completed(self.model.tokenize(request))

    def _tokenize_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Tokens]:
        name = self.model.manifest.name
        if self.model.manifest.dimensions > 1:  # not a reranker: only /predict serves it
            return completed(self.model.tokenize_inputs(PredictRequest(name, tuple(pairs))))
        sequences: list[Tokens] = []
        for query, group in groupby(pairs, key=lambda pair: pair[0]):
            documents = tuple(document for _, document in group)
            sequences += completed(self.model.tokenize_pairs(RerankRequest(name, query, documents)))
        return sequences

    def _run(self, sequences: Sequence[Tokens]) -> FloatMatrix:
        rows: FloatMatrix = np.stack(self._rows(sequences))
        return rows

    def _rows(self, sequences: Sequence[Tokens]) -> list[Any]:
        plan = plan_batches(
            [len(tokens) for tokens in sequences],
            budget_tokens=self._limits.tokens_for(self.model.manifest.target),
            max_texts=self._limits.batch_texts,
        )
        result: list[Any] = [None] * len(sequences)

        def run(rows: list[int]) -> None:
            try:
                made = self.model.run([sequences[row] for row in rows])
            except BlitzError:
                raise
            except Exception as error:  # of the runtime
                raise InvalidArtefact("the built model does not run the sample inputs") from error
            for row, numbers in zip(rows, made, strict=True):
                result[row] = numbers

        with ThreadPoolExecutor(self._limits.threads) as pool:
            list(pool.map(run, plan))
        if bad := len(not_finite(_together(result))):
            raise InvalidArtefact(
                f"as {self.model.manifest.target} the model returns NaN or infinite numbers for {bad} "
                f"of {len(sequences)} sample inputs"
            )
        return result

    def _batch_difference(
        self, sequences: Sequence[Tokens], finished: Callable[[FloatMatrix], FloatMatrix | DoubleMatrix]
    ) -> float:
        # Sorted, so that batches are padded, but not every short text to the longest of all.
        compared = sorted(sequences[:_COMPARED], key=len)
        largest = 0.0
        for start in range(0, len(compared), _BATCH):
            batch = compared[start : start + _BATCH]
            among = finished(self.model.run(batch))
            alone = finished(np.concatenate([self.model.run([tokens]) for tokens in batch]))
            # np.maximum keeps a NaN; max() would drop it.
            largest = float(np.maximum(largest, np.abs(alone - among).max()))
        return largest


def _together(rows: list[Any]) -> Rows:
    """Rows of one vector each as a matrix: some whose length is infinite have finite numbers."""
    return np.stack(rows) if isinstance(rows[0], np.ndarray) and rows[0].ndim == 1 else rows


def _difference(one: Any, other: Any) -> float:
    """The largest of numbers in the same places. A word that only one has counts with all its weight."""
    if not isinstance(one, SparseRow):
        return float(np.abs(one - other).max(initial=0.0))
    words = np.union1d(one.indices, other.indices)
    numbers = np.zeros((2, len(words)), np.float32)
    for row, each in zip(numbers, (one, other), strict=True):
        row[np.searchsorted(words, each.indices)] = each.values
    return float(np.abs(numbers[0] - numbers[1]).max(initial=0.0))


def probabilities(logits: FloatMatrix) -> DoubleMatrix:
    """(N, L) logits -> the scores that a server returns by default."""
    return sigmoid(logits) if logits.shape[1] == 1 else softmax(logits)


def _runtime(target: Target) -> tuple[OpenEngine, Capacity]:
    if target != "gpu-fp16":
        return open_cpu_engine, capacity()
    if torch.cuda.is_available():
        open_engine = functools.partial(TorchEngine, device="cuda", dtype=torch.float16)
        return open_engine, gpu_capacity(gpu_memory()["free"])
    # FP16 weights, FP32 products: on a CPU FP16 products take five times as long.
    open_engine = functools.partial(TorchEngine, device="cpu", dtype=torch.float32)
    return open_engine, gpu_capacity(None)
