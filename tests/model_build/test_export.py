"""Tiny random models of each architecture, with and without a classifier, go through the real export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.numpy import load_file, save_file

from model_build.export import export_onnx, optimize_offline
from model_build.source import inspect_source
from shared.engines.base import pad
from shared.errors import InvalidInput
from tests.tiny_torch import CLASSIFIERS, ENCODERS, PAIRS, SEQUENCES, tiny_cross_encoder, tiny_model


@pytest.mark.parametrize("architecture", ENCODERS)
def test_the_graph_is_fused_and_equals_torch_on_padded_batches(
    architecture: str, tmp_path: Path
) -> None:
    """Token embeddings are torch's, whatever shares the batch, from one fused attention a layer."""
    folder = tiny_model(tmp_path / "model", architecture)
    source = inspect_source(folder)
    export_onnx(source, tmp_path / "fused.onnx")
    optimize_offline(tmp_path / "fused.onnx", tmp_path / "fp32.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "fp32.onnx").graph.node]
    assert operators.count("MultiHeadAttention") == 2
    assert "SkipLayerNormalization" not in operators
    assert "Softmax" not in operators
    session = ort.InferenceSession(tmp_path / "fp32.onnx", providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape[-1] == 32
    model = ENCODERS[architecture][0].from_pretrained(folder).eval()
    longest = [0, *[5] * (source.max_tokens - 2), 2]
    for sequences in (SEQUENCES, SEQUENCES[:1], [[0, 2]], [*SEQUENCES, longest]):
        batch = pad(sequences, source.pad_token_id)
        feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(value) for name, value in feeds.items()})
        real = batch.attention_mask.astype(bool)
        np.testing.assert_allclose(
            session.run(None, feeds)[0][real], expected.last_hidden_state.numpy()[real], atol=1e-4
        )


@pytest.mark.parametrize("labels", [("relevant",), ("no", "maybe", "yes")])
@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_cross_encoders_logits_equal_torchs(
    architecture: str, labels: tuple[str, ...], tmp_path: Path
) -> None:
    """Fused attention, pairs told apart where the model does, and a width that the graph states."""
    folder = tiny_cross_encoder(tmp_path / "model", architecture, labels=labels)
    source = inspect_source(folder)
    export_onnx(source, tmp_path / "fused.onnx")
    optimize_offline(tmp_path / "fused.onnx", tmp_path / "fp32.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "fp32.onnx").graph.node]
    assert operators.count("MultiHeadAttention") == 2
    session = ort.InferenceSession(tmp_path / "fp32.onnx", providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == ["batch", len(labels)]
    names = [each.name for each in session.get_inputs()]
    assert ("token_type_ids" in names) == (architecture == "bert")
    model = CLASSIFIERS[architecture].from_pretrained(folder).eval()
    for sequences in (PAIRS, PAIRS[:1], [[0, 2]]):
        batch = pad(sequences, source.pad_token_id)
        feeds = {name: getattr(batch, name) for name in names}
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(value) for name, value in feeds.items()}).logits
        np.testing.assert_allclose(session.run(None, feeds)[0], expected.numpy(), atol=1e-4)


def test_a_pairs_second_text_is_told_from_its_first(tmp_path: Path) -> None:
    """With type ids of zeros BERT gives another score: they are not folded away."""
    source = inspect_source(tiny_cross_encoder(tmp_path / "model"))
    export_onnx(source, tmp_path / "fp32.onnx")
    session = ort.InferenceSession(tmp_path / "fp32.onnx", providers=["CPUExecutionProvider"])
    batch = pad(PAIRS[:1], 1)
    feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    told, merged = (
        session.run(None, feeds | {"token_type_ids": types})[0]
        for types in (batch.token_type_ids, np.zeros_like(batch.token_type_ids))
    )
    assert np.abs(told - merged).max() > 1e-3


def test_a_cross_encoder_without_its_classifier_is_refused(tmp_path: Path) -> None:
    """transformers would fill it with random numbers and say so in a log line."""
    folder = tiny_cross_encoder(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidInput, match=r"lack classifier\.weight"):
        export_onnx(inspect_source(folder), tmp_path / "fp32.onnx")
