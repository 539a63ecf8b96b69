"""Sparse encoders as they are built give what sentence-transformers' SparseEncoder does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from model_build.describe import HEAD_FILE, MODEL_FILE, describe
from model_build.export import export_onnx, optimize_offline
from model_build.fp16 import export_fp16
from model_build.int8 import quantize_per_row
from model_build.source import inspect_source
from shared.contracts import EmbedSparseRequest, SparseRow
from shared.engines.cpu import open_cpu_engine
from shared.engines.torch import TorchEngine
from shared.errors import InvalidArtefact, InvalidInput
from shared.inference.model import Model, load_model
from shared.inference.steps import completed
from shared.models.manifest import Source, Target
from tests.tiny_torch import DISTIL, SMALL, edit_json, save_tiny

TEXTS = ("a b c", "h e l l o", "z", " ".join("the quick brown fox jumps over".replace(" ", "")), "q b")
MODELS: dict[str, tuple[Any, Any]] = {
    "bert": (BertForMaskedLM, BertConfig(**SMALL)),
    "distilbert": (DistilBertForMaskedLM, DistilBertConfig(**DISTIL)),
    "roberta": (RobertaForMaskedLM, RobertaConfig(**SMALL)),
    "modernbert": (ModernBertForMaskedLM, ModernBertConfig(**SMALL, tie_word_embeddings=False)),
    "electra": (ElectraForMaskedLM, ElectraConfig(**SMALL, embedding_size=16)),
}


def _sparse_folder(folder: Path, architecture: str = "bert", **splade: Any) -> Path:
    plain = save_tiny(folder.parent / f"{folder.name}-plain", *MODELS[architecture])
    SparseEncoder(str(plain), device="cpu", local_files_only=True).save_pretrained(str(folder))
    edit_json(folder / "1_SpladePooling" / "config.json", **splade)
    return folder


def _built(folder: Path, target: Target = "cpu-fp32", pooling: Any = None) -> Model:
    """Of the folder, beside it."""
    source = inspect_source(folder, pooling)
    out = folder.with_name(f"{folder.name}-{target}")
    out.mkdir()
    if target == "gpu-fp16":
        export_fp16(source, out)
    else:
        graph = out / "graph.onnx"
        export_onnx(source, graph)
        for name, to in ((graph.name, MODEL_FILE), (HEAD_FILE, HEAD_FILE)):
            made = shutil.move(out / name, out / f"exported-{name}")
            if target == "cpu-int8":
                quantize_per_row(Path(made), out / f"int8-{name}")
                made = out / f"int8-{name}"
            optimize_offline(Path(made), out / to)
    manifest = describe(out, source, Source("there", "1"), "m", target)
    if target == "gpu-fp16":
        return load_model(out, manifest, lambda where, what: TorchEngine(where, what, **_ON_CPU))
    return load_model(out, manifest, open_cpu_engine)


_ON_CPU: Any = {"device": "cpu", "dtype": torch.float32}


def _rows(model: Model, input_type: Any = "document") -> list[SparseRow]:
    request = EmbedSparseRequest("m", TEXTS, input_type=input_type)
    return list(model.run(completed(model.tokenize_sparse(request))))


def _original(folder: Path, input_type: str = "document") -> list[Any]:
    model = SparseEncoder(str(folder), device="cpu", local_files_only=True)
    encode = model.encode_query if input_type == "query" else model.encode_document
    return list(encode(list(TEXTS), convert_to_sparse_tensor=False).numpy())


def _check(rows: list[SparseRow], truth: list[Any], tolerance: float = 1e-4) -> None:
    """The same words where a weight is above the tolerance, and weights that are as close."""
    for row, right in zip(rows, truth, strict=True):
        words = np.zeros_like(right)
        words[row.indices] = row.values
        assert np.array_equal(np.flatnonzero(words > tolerance), np.flatnonzero(right > tolerance))
        assert np.abs(words - right).max() < tolerance
        assert np.all(np.diff(row.indices) > 0)
        assert np.all(row.values != 0)


@pytest.mark.parametrize("architecture", MODELS)
def test_weights_are_the_original_s(architecture: str, tmp_path: Path) -> None:
    """Of every architecture that ends in a layer with a row for each word."""
    folder = _sparse_folder(tmp_path / "model", architecture)
    _check(_rows(_built(folder)), _original(folder))


@pytest.mark.parametrize(
    "splade",
    [
        {"pooling_strategy": "sum"},
        {"activation_function": "log1p_relu"},
        {"pooling_strategy": "sum", "activation_function": "log1p_relu"},
    ],
    ids=str,
)
def test_pooling_and_activation_are_the_folder_s(splade: dict[str, str], tmp_path: Path) -> None:
    """On both devices' engines."""
    folder = _sparse_folder(tmp_path / "model", **splade)
    truth = _original(folder)
    _check(_rows(_built(folder)), truth)
    _check(_rows(_built(folder, "gpu-fp16")), truth, tolerance=2e-2)  # the weights are rounded


def test_prompts_and_the_number_of_words_are_the_folder_s(tmp_path: Path) -> None:
    """max_active_dims keeps the largest weights."""
    folder = _sparse_folder(tmp_path / "model")
    config = folder / "config_sentence_transformers.json"
    edit_json(config, prompts={"query": "f i n d ", "document": ""}, max_active_dims=5)
    for model in (_built(folder), _built(folder, "gpu-fp16")):
        for asked in ("query", "document"):
            rows = _rows(model, asked)
            _check(rows, _original(folder, asked), tolerance=2e-2)
            assert {len(row.values) for row in rows} == {5}


def test_a_plain_folder_is_sparse_if_the_operator_says_so(tmp_path: Path) -> None:
    """It is pooled as sentence-transformers pools one by default."""
    folder = save_tiny(tmp_path / "model", *MODELS["bert"])
    _check(_rows(_built(folder, pooling="splade")), _original(folder))


def test_int8_keeps_the_weights(tmp_path: Path) -> None:
    """The last layer is quantised, too."""
    folder = _sparse_folder(tmp_path / "model")
    model = _built(folder, "cpu-int8")
    for row, right in zip(_rows(model), _original(folder), strict=True):
        words = np.zeros_like(right)
        words[row.indices] = row.values
        assert words @ right / np.linalg.norm(words) / np.linalg.norm(right) > 0.99
    head = folder.with_name("model-cpu-int8") / HEAD_FILE
    assert b"MatMulIntegerToFloat" in head.read_bytes()


@pytest.mark.parametrize("splade", [{}, {"pooling_strategy": "sum"}], ids=["max", "sum"])
def test_weights_depend_on_no_other_text_and_on_no_block(
    splade: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tokens the last layer sees at a time."""
    folder = _sparse_folder(tmp_path / "model", **splade)
    model = _built(folder)
    together = _rows(model)
    sequences = completed(model.tokenize_sparse(EmbedSparseRequest("m", TEXTS)))
    for block in (1, 3, 1_000):
        monkeypatch.setattr(model.engine, "_block", block)
        for index, tokens in enumerate(sequences):
            (alone,) = model.run([tokens])
            assert np.array_equal(alone.indices, together[index].indices)
            assert np.allclose(alone.values, together[index].values, rtol=0, atol=1e-6)
        _check(model.run(sequences), _original(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"transformer_task": "feature-extraction"}, "whose transformer_task is fill-mask"),
        ({"pooling_strategy": "mean"}, "Invalid enum value 'mean'"),
        ({"activation_function": "gelu"}, "Invalid enum value 'gelu'"),
        ({"architectures": ["BertModel"]}, "a sparse encoder is a ...ForMaskedLM"),
        ({"max_active_dims": 0}, "max_active_dims"),
    ],
    ids=str,
)
def test_what_is_no_sparse_encoder_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    """With what would be right."""
    folder = _sparse_folder(tmp_path / "model")
    (name,) = change
    files = {
        "transformer_task": "sentence_bert_config.json",
        "architectures": "config.json",
        "max_active_dims": "config_sentence_transformers.json",
    }
    edit_json(folder / files.get(name, "1_SpladePooling/config.json"), **change)
    with pytest.raises(InvalidInput) as refusal:
        inspect_source(folder)
    assert said in refusal.value.message
    assert refusal.value.field == "model"


def test_a_head_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Of a sparse model that was put together from two."""
    folder = _sparse_folder(tmp_path / "model")
    manifest = _built(folder).manifest
    out = folder.with_name("model-cpu-fp32")
    other = _built(_sparse_folder(tmp_path / "electra", "electra")).manifest
    shutil.copy(tmp_path / "electra-cpu-fp32" / HEAD_FILE, out / HEAD_FILE)
    assert other.dimensions == manifest.dimensions
    with pytest.raises(InvalidArtefact, match=r"head\.onnx does not fit model\.onnx"):
        load_model(out, manifest, open_cpu_engine)
