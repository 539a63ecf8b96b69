"""Attention without a mask against that of transformers, and blind to batch-mates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    ElectraConfig,
    ElectraModel,
    EuroBertConfig,
    EuroBertModel,
    GteConfig,
    GteModel,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    NomicBertConfig,
    NomicBertModel,
)

from model_build.describe import describe
from model_build.export import export_onnx, optimize_offline
from model_build.source import inspect_source
from shared.engines.base import pad
from shared.engines.onnx import OnnxEngine
from shared.models.manifest import Source
from tests.tiny_torch import SEQUENCES, SMALL, save_random, state_pooling

ENDS = {"bos_token_id": 0, "eos_token_id": 2}
MODELS: dict[str, tuple[Any, Any]] = {
    "albert": (AlbertModel, AlbertConfig(**SMALL, embedding_size=16)),
    "electra": (ElectraModel, ElectraConfig(**SMALL, embedding_size=16)),
    "eurobert": (EuroBertModel, EuroBertConfig(**SMALL, **ENDS, num_key_value_heads=2)),
    "gte": (GteModel, GteConfig(**SMALL)),
    "jina": (JinaEmbeddingsV3Model, JinaEmbeddingsV3Config(**SMALL)),
    "nomic": (NomicBertModel, NomicBertConfig(**SMALL, head_dim=8)),
}
SOURCE = Source("here", "1")
LONG = [0, *(4 + i * 7 % 26 for i in range(37)), 2]
"""As long as the model allows, or nearly."""


@pytest.mark.parametrize("name", MODELS)
def test_token_embeddings_are_torchs_and_blind_to_batch_mates(name: str, tmp_path: Path) -> None:
    """Grouped keys, rotated ones, shared weights: no layer is left that holds all scores."""
    kind, config = MODELS[name]
    folder = state_pooling(save_random(tmp_path / "model", kind, config, 0))
    source = inspect_source(folder)
    export_onnx(source, tmp_path / "traced.onnx")
    optimize_offline(tmp_path / "traced.onnx", tmp_path / "fp32.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "fp32.onnx").graph.node]
    assert (operators.count("MultiHeadAttention"), operators.count("Softmax")) == (2, 0)
    session = ort.InferenceSession(tmp_path / "fp32.onnx", providers=["CPUExecutionProvider"])
    model = kind.from_pretrained(folder, attn_implementation="eager").eval()
    batch = pad([*SEQUENCES, LONG], source.pad_token_id)
    feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
        expected = model(**tensors).last_hidden_state.numpy()
    together = session.run(None, feeds)[0]
    for row, tokens in enumerate([*SEQUENCES, LONG]):
        np.testing.assert_allclose(together[row, : len(tokens)], expected[row, : len(tokens)], atol=1e-4)
        one = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, len(tokens)), np.int64)}
        np.testing.assert_array_equal(session.run(None, one)[0][0], together[row, : len(tokens)])


@pytest.mark.parametrize("name", ["bert", "nomic"])
def test_no_length_depends_on_its_batch_mates(name: str, tmp_path: Path) -> None:
    """18 and 35 tokens leave a tile of one query, which ONNX Runtime computes in another order."""
    kind, config = {**MODELS, "bert": (BertModel, BertConfig(**SMALL))}[name]
    source = inspect_source(state_pooling(save_random(tmp_path / "model", kind, config, 0)))
    export_onnx(source, tmp_path / "traced.onnx")
    optimize_offline(tmp_path / "traced.onnx", tmp_path / "model.onnx")
    engine = OnnxEngine(tmp_path, describe(tmp_path, source, SOURCE, "m", "cpu-fp32"))
    texts = [[0, *(4 + i * 7 % 26 for i in range(length - 2)), 2] for length in range(2, 41)]
    together = engine.run(texts)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(engine.run([text])[0], row)
    engine.close()
