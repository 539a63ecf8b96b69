"""Tiny random models of each architecture, with and without a classifier, go through the real export."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    MPNetConfig,
    MPNetForSequenceClassification,
    MPNetModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from model_build.export import export_onnx, optimize_offline
from model_build.source import inspect_source
from shared.contracts import TokenPair, Tokens
from shared.engines.base import pad
from shared.errors import InvalidInput

WORDS = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "##a", "##b", "##c"]
SEQUENCES = [[0, 5, 9, 7, 2], [0, 4, 2], [0, 6, 8, 11, 20, 21, 22, 13, 2]]
SMALL: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
DISTIL: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "n_layers": 2,
    "n_heads": 4,
    "dim": 32,
    "hidden_dim": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
ARCHITECTURES: dict[str, tuple[Any, Any]] = {
    "bert": (BertModel, BertConfig(**SMALL)),
    "roberta": (RobertaModel, RobertaConfig(**SMALL)),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**SMALL)),
    "distilbert": (DistilBertModel, DistilBertConfig(**DISTIL)),
    "mpnet": (MPNetModel, MPNetConfig(**SMALL)),
}
CLASSIFIERS: dict[str, Any] = {
    "bert": BertForSequenceClassification,
    "roberta": RobertaForSequenceClassification,
    "xlm-roberta": XLMRobertaForSequenceClassification,
    "distilbert": DistilBertForSequenceClassification,
    "mpnet": MPNetForSequenceClassification,
}
PAIRS: list[Tokens] = [
    TokenPair([0, 5, 9, 2, 7, 8, 2], [0, 0, 0, 0, 1, 1, 1]),
    TokenPair([0, 4, 2, 6, 2], [0, 0, 0, 1, 1]),
    [0, 6, 8, 2],
]


def tiny_model(folder: Path, architecture: str = "bert", seed: int = 0) -> Path:
    """A transformers folder with random weights, large enough to make attention uneven."""
    kind, config = ARCHITECTURES[architecture]
    return save_random(folder, kind, config, seed)


def tiny_cross_encoder(
    folder: Path,
    architecture: str = "bert",
    seed: int = 0,
    labels: tuple[str, ...] = ("relevant",),
    positions: int = 40,
) -> Path:
    """`tiny_model` with a classifier over `labels`; BERT's tells the texts of a pair apart."""
    config = copy.deepcopy(ARCHITECTURES[architecture][1])
    config.max_position_embeddings = positions
    config.num_labels = len(labels)
    if "roberta" in architecture:
        config.type_vocab_size = 1  # as the real ones have; the class's default is BERT's
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    return save_random(folder, CLASSIFIERS[architecture], config, seed)


def save_random(folder: Path, kind: Any, config: Any, seed: int) -> Path:
    """Random weights, uneven enough for attention to matter, and a tokenizer that knows pairs."""
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def edit_json(path: Path, **values: Any) -> None:
    value = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(value | values))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_graph_is_fused_and_equals_torch_on_padded_batches(
    architecture: str, tmp_path: Path
) -> None:
    """Token embeddings are torch's, whatever shares the batch, from one fused attention a layer."""
    folder = tiny_model(tmp_path / "model", architecture)
    source = inspect_source(folder)
    export_onnx(source, tmp_path / "fused.onnx")
    optimize_offline(tmp_path / "fused.onnx", tmp_path / "fp32.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "fp32.onnx").graph.node]
    # MPNet adds a bias of positions to its attention, which the optimiser does not know.
    assert operators.count("MultiHeadAttention") == (0 if architecture == "mpnet" else 2)
    assert "SkipLayerNormalization" not in operators
    session = ort.InferenceSession(tmp_path / "fp32.onnx", providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape[-1] == 32
    model = ARCHITECTURES[architecture][0].from_pretrained(folder).eval()
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
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cross_encoders_logits_equal_torchs(
    architecture: str, labels: tuple[str, ...], tmp_path: Path
) -> None:
    """Fused attention, pairs told apart where the model does, and a width that the graph states."""
    folder = tiny_cross_encoder(tmp_path / "model", architecture, labels=labels)
    source = inspect_source(folder)
    export_onnx(source, tmp_path / "fused.onnx")
    optimize_offline(tmp_path / "fused.onnx", tmp_path / "fp32.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "fp32.onnx").graph.node]
    assert operators.count("MultiHeadAttention") == (0 if architecture == "mpnet" else 2)
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
