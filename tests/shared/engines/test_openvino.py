"""OpenVINO's engine, against sentence-transformers, onnxruntime and itself: `make test-openvino`."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DebertaConfig,
    DebertaModel,
    ModernBertConfig,
    ModernBertModel,
    T5Config,
    T5EncoderModel,
)

from model_build.export import export_plain
from model_build.source import inspect_source
from shared.contracts import FloatMatrix, TokenPair
from shared.engines.base import pad
from shared.engines.cpu import open_cpu_engine
from shared.errors import InvalidArtefact
from shared.models.manifest import Manifest, decode_manifest
from shared.vectors import Pooling, finish, pool
from tests.tiny import manifest_of
from tests.tiny_torch import ENCODERS, PAIRS, SMALL, save_random, state_pooling, tiny_cross_encoder

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: make test-openvino")
from shared.engines.openvino_graph import with_keys  # noqa: E402

TEXTS = ["a b c", "z", "q w e r t y", " ".join("abcdefgh" * 3)]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "max", "last", "weighted_mean", "mean_sqrt_length")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that reads 300 tokens, and its plain FP32 graph."""
    folder = tmp_path_factory.mktemp("tiny")
    config = BertConfig(**SMALL | {"max_position_embeddings": 300})
    state_pooling(save_random(folder, BertModel, config, seed=0))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    export_plain(inspect_source(folder), folder / "model.onnx")
    return folder


def manifest(**fields: Any) -> Manifest:
    """Of FP32 numbers: the target says only that nothing is bfloat16, the graph has no INT8."""
    usual = {"target": "cpu-int8-static", "dimensions": 32, "max_tokens": 300, "pad_token_id": 1}
    return manifest_of("tiny", **usual | fields)


def sequences(*lengths: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [[0, *random.integers(4, 30, length - 2).tolist(), 2] for length in lengths]


@pytest.mark.parametrize("pooling", [*POOLINGS, ("cls", "mean"), ("max", "mean")], ids=str)
def test_vectors_are_onnxruntimes_pooled_in_numpy(folder: Path, pooling: Any) -> None:
    """The same graph in another runtime: poolings that become part of it, and max, which does not."""
    given = sequences(5, 3, 30, 70, 75, 100)
    batch = pad(given, 1)
    feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    hidden = ort.InferenceSession(folder / "model.onnx").run(None, feeds)[0]
    engine = open_cpu_engine(folder, manifest(pooling=pooling))
    rows = engine.run(given)
    expected = pool(hidden, [len(each) for each in given], pooling)
    assert rows.shape == (6, engine.dimensions) == expected.shape
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("target", "least"), [("cpu-int8-static", 0.999999), ("cpu-bf16", 0.999)])
def test_vectors_are_sentence_transformers(folder: Path, target: Any, least: float) -> None:
    """Float32, and bfloat16 where this processor multiplies it: then nearly."""
    model = SentenceTransformer(str(folder), device="cpu")
    truth = finish(model.encode(TEXTS), None, normalize=True)
    tokens = [[0, *model.tokenizer.encode(text)[1:-1], 2] for text in TEXTS]
    rows = finish(open_cpu_engine(folder, manifest(target=target)).run(tokens), None, normalize=True)
    assert (rows * truth).sum(axis=1).min() >= least


def test_logits_are_torchs(tmp_path: Path) -> None:
    """A cross-encoder with token types: pairs, and a text alone."""
    source = inspect_source(tiny_cross_encoder(tmp_path / "source", labels=("a", "b")))
    export_plain(source, tmp_path / "model.onnx")
    fields = {"task": "cross-encoder", "pooling": None, "labels": ("a", "b"), "dimensions": 2}
    rows = open_cpu_engine(tmp_path, manifest(max_tokens=40, **fields)).run(PAIRS)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "source").eval()
    for row, pair in zip(rows, PAIRS, strict=True):
        types = pair.type_ids if isinstance(pair, TokenPair) else [0] * len(pair)
        ids = pair.ids if isinstance(pair, TokenPair) else pair
        with torch.no_grad():
            logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0]
        np.testing.assert_allclose(row, logits.numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def quantized(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT as the command builds it: static INT8."""
    pytest.importorskip("nncf", reason="NNCF is not installed: make test-openvino")
    from model_build.__main__ import app

    out = tmp_path_factory.mktemp("built")
    arguments = ["--target", "cpu-int8-static", "--out", out / "model"]
    gates = ["--min-cosine", "0.5", "--min-worst-cosine", "0"]
    with pytest.raises(SystemExit) as ended:
        app([str(each) for each in (folder, *arguments, *gates)], prog_name="model_build")
    assert ended.value.code == 0
    return out / "model"


def test_a_build_is_static_int8(folder: Path, quantized: Path) -> None:
    """It has fixed scales and no operator of onnxruntime's own, and says what made and what runs it."""
    built = decode_manifest((quantized / "manifest.json").read_bytes())
    assert built.target == "cpu-int8-static"
    assert {"nncf", "openvino"} <= built.tools.keys()
    assert "OpenVINO" in (quantized / "README.md").read_text()
    content = (quantized / "model.onnx").read_bytes()
    assert b"DequantizeLinear" in content
    assert b"com.microsoft" not in content
    assert built.quality is not None
    assert built.quality.batch_max_abs_diff < 1e-6


@pytest.fixture(scope="module", params=["cpu-int8-static", "cpu-bf16"])
def built(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, Manifest]:
    """The tiny BERT in both targets, as they are served."""
    if request.param == "cpu-bf16":
        return folder, manifest(target="cpu-bf16")
    quantized: Path = request.getfixturevalue("quantized")
    return quantized, decode_manifest((quantized / "manifest.json").read_bytes())


def test_a_text_has_the_same_bits_alone_and_among_others(built: tuple[Path, Manifest]) -> None:
    """All lengths on both sides of whole registers, in random batches."""
    engine = open_cpu_engine(*built)
    given = sequences(*range(3, 70), *range(77, 85), 130, 175, 250, 299, 300)
    alone = [engine.run([each])[0] for each in given]
    random = np.random.default_rng(1)
    for most in (12, 40, len(given)) * 12:
        chosen = random.choice(most, random.integers(2, 9), replace=False)
        rows = engine.run([given[each] for each in chosen])
        assert all(np.array_equal(row, alone[each]) for row, each in zip(rows, chosen, strict=True))


WIDE = SMALL | {"max_position_embeddings": 64}
DISENTANGLED = WIDE | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "pad_token_id": 1}
ARCHITECTURES: dict[str, tuple[Any, Any, bool]] = {
    **{name: (*ENCODERS[name], True) for name in ("roberta", "distilbert", "mpnet")},
    "modernbert": (ModernBertModel, ModernBertConfig(**WIDE, local_attention=16), True),
    "t5": (T5EncoderModel, T5Config(vocab_size=33, **T5), True),
    "deberta": (DebertaModel, DebertaConfig(**DISENTANGLED), False),
}
"""Each with what is known of its attention: whether only the keys are padded, or whole texts."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_sees_whole_registers_of_keys(architecture: str, tmp_path: Path) -> None:
    """Masks, positions and rotations beside the products, in ONNX Runtime's graph; the same bits."""
    kind, config, is_known = ARCHITECTURES[architecture]
    state_pooling(save_random(tmp_path, kind, config, seed=0))
    export_plain(inspect_source(tmp_path), tmp_path / "model.onnx")
    keyed = with_keys(openvino.Core().read_model(tmp_path / "model.onnx"))
    assert (keyed is not None) == is_known
    given = sequences(3, 15, 18, 31, 33, 38)
    batch = pad(given, 1)
    feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    hidden = ort.InferenceSession(tmp_path / "model.onnx").run(None, feeds)[0]
    engine = open_cpu_engine(tmp_path, manifest(max_tokens=38))
    rows = engine.run(given)
    expected = pool(hidden, [len(each) for each in given], "mean")
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=2e-5)
    assert np.array_equal(np.concatenate([engine.run([each]) for each in given]), rows)


def test_threads_do_not_mix_their_rows(folder: Path) -> None:
    """More callers than cores, each with its own lengths."""
    engine = open_cpu_engine(folder, manifest())
    batches = [sequences(*range(3 + n, 3 + 5 * n + 1, n + 1)) for n in range(1, 9)]
    expected = [engine.run(batch) for batch in batches]

    def again(number: int) -> FloatMatrix:
        return np.asarray(engine.run(batches[number]))

    with ThreadPoolExecutor(8) as callers:
        for _ in range(4):
            for rows, right in zip(callers.map(again, range(8)), expected, strict=True):
                assert np.array_equal(rows, right)
    engine.close()


@pytest.mark.parametrize("fields", [{"pooling": None}, {"model_file": "tokenizer.json"}], ids=str)
def test_a_file_that_is_no_such_graph_is_refused(folder: Path, fields: dict[str, Any]) -> None:
    """Token embeddings for what should be logits; and no graph at all."""
    with pytest.raises(InvalidArtefact):
        open_cpu_engine(folder, msgspec.structs.replace(manifest(), **fields))
