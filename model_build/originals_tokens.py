"""Runs original sparse encoders and late-interaction models with sentence-transformers, in FP32.

It does not know built models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import MultiVectorEncoder, SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling

from model_build.folder import refusing
from model_build.originals import BATCH, DOES_NOT_RUN, SAFE, UNREADABLE, prepare
from model_build.source import SourceModel
from shared.contracts import FloatMatrix, InputType, SparseRow
from shared.errors import InvalidArtefact


def sparse_original(
    root: Path, source: SourceModel
) -> Callable[[Sequence[str], InputType], list[SparseRow]]:
    """The sparse encoder in the folder `root`, which was read as `source`.

    Its prompts are those of `source`. Raises InvalidInput if it cannot be loaded; calls raise
    InvalidInput if it cannot run, and InvalidArtefact for NaN or infinite numbers.
    """
    with refusing(UNREADABLE):
        model = _sparse_encoder(root)
        prepare(model, source)
    model.prompts, model.default_prompt_name = dict(source.prompts), source.default_prompt

    def encode(texts: Sequence[str], input_type: InputType) -> list[SparseRow]:
        encoder = model.encode_query if input_type == "query" else model.encode_document
        with refusing(DOES_NOT_RUN):
            vectors = encoder(
                list(texts),
                show_progress_bar=False,
                batch_size=BATCH,
                convert_to_tensor=False,
                convert_to_sparse_tensor=True,
            )
        return [_row(vector.coalesce()) for vector in vectors]

    return encode


def _sparse_encoder(root: Path) -> SparseEncoder:
    if (root / "modules.json").is_file():
        return SparseEncoder(
            str(root), device="cpu", trust_remote_code=False, local_files_only=True, model_kwargs=SAFE
        )
    transformer = Transformer(str(root), transformer_task="fill-mask", model_kwargs=SAFE)
    return SparseEncoder(modules=[transformer, SpladePooling("max")], device="cpu")


def _row(vector: Any) -> SparseRow:
    indices, values = vector.indices()[0].numpy(), vector.values().numpy()
    if not np.isfinite(values).all():
        raise InvalidArtefact("the original model itself returns NaN or infinite numbers in FP32")
    kept = values != 0
    return SparseRow(indices[kept].astype(np.int32), values[kept])


def late_original(
    root: Path, source: SourceModel
) -> Callable[[Sequence[str], InputType], list[FloatMatrix]]:
    """As `sparse_original`, of a late-interaction model: (T, D) float32 unit vectors of each text."""
    with refusing(UNREADABLE):
        model = MultiVectorEncoder(
            str(root), device="cpu", trust_remote_code=False, local_files_only=True, model_kwargs=SAFE
        )
    model.prompts, model.default_prompt_name = dict(source.prompts), source.default_prompt

    def encode(texts: Sequence[str], input_type: InputType) -> list[FloatMatrix]:
        encoder = model.encode_query if input_type == "query" else model.encode_document
        with refusing(DOES_NOT_RUN):
            rows = encoder(list(texts), show_progress_bar=False, batch_size=BATCH, convert_to_numpy=True)
        if not all(np.isfinite(row).all() for row in rows):
            raise InvalidArtefact("the original model itself returns NaN or infinite numbers in FP32")
        return [np.asarray(row, np.float32) for row in rows]

    return encode
