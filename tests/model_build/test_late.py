"""Late-interaction models as they are built give what sentence-transformers' MultiVectorEncoder does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel

from model_build.describe import MODEL_FILE, describe
from model_build.export import export_onnx, optimize_offline
from model_build.fp16 import export_fp16
from model_build.source import inspect_source
from shared.contracts import EmbedTokensRequest, FloatMatrix
from shared.engines.cpu import open_cpu_engine
from shared.engines.torch import TorchEngine
from shared.errors import InvalidInput
from shared.inference.model import Model, load_model
from shared.inference.steps import completed
from shared.models.manifest import Source, Target
from tests.tiny_torch import SMALL, edit_json, save_tiny

TEXTS = ("a b c", "h e l l o", "z", " ".join("the quick brown fox jumps over".replace(" ", "")), "q b")
BERT = BertModel, BertConfig(**SMALL)
_ON_CPU: Any = {"device": "cpu", "dtype": torch.float32}


def _plain(folder: Path, model: tuple[Any, Any] = BERT) -> Path:
    save_tiny(folder, *model)
    edit_json(folder / "tokenizer_config.json", mask_token="<unk>")
    return folder


def _native(folder: Path, **transformer: Any) -> Path:
    """As sentence-transformers saves one. transformer: of its Transformer module."""
    plain = _plain(folder.with_name("plain"), transformer.pop("model", BERT))
    torch.manual_seed(0)  # of the projection
    MultiVectorEncoder(str(plain), device="cpu", local_files_only=True).save_pretrained(str(folder))
    edit_json(folder / "2_MultiVectorMask" / "config.json", skiplist_words=transformer.pop("skip", []))
    edit_json(folder / "sentence_bert_config.json", **transformer)
    edit_json(folder / "config_sentence_transformers.json", prompts={"query": "q ", "document": "d d "})
    return folder


def _pylate(folder: Path, **stated: Any) -> Path:
    """As PyLate saves one: a Transformer and a Dense, and all else in one file."""
    _native(folder)
    listed = json.loads((folder / "modules.json").read_text())[:2]
    listed[1]["type"] = "pylate.models.Dense.Dense"
    (folder / "modules.json").write_text(json.dumps(listed))
    dense = {"in_features": 32, "out_features": 128, "bias": False}
    identity = {"activation_function": "torch.nn.modules.linear.Identity"}
    (folder / "1_Dense" / "config.json").write_text(json.dumps(dense | identity))
    for name in ("2_MultiVectorMask", "3_Normalize"):
        shutil.rmtree(folder / name)
    said = {"query_prefix": "##a ", "document_prefix": "##b ", "query_length": 12, "document_length": 20}
    config = folder / "config_sentence_transformers.json"
    edit_json(config, model_type="ColBERT", prompts={}, **said | stated)
    return folder


def _stanford(folder: Path, **metadata: Any) -> Path:
    """As Stanford's colbert-ir saves one: the projection is among the transformer's weights."""
    _plain(folder)
    edit_json(folder / "config.json", architectures=["HF_ColBERT"])
    weights = {f"bert.{name}": each for name, each in load_file(folder / "model.safetensors").items()}
    weights["linear.weight"] = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    said = {"query_token_id": "##a", "doc_token_id": "##b", "query_maxlen": 10, "doc_maxlen": 15}
    (folder / "artifact.metadata").write_text(json.dumps(said | metadata))
    return folder


FIXED = {"strategy": "fixed", "length": 14}
FOLDERS: dict[str, Any] = {
    "as it is": (_native, {}),
    "ModernBERT": (_native, {"model": (ModernBertModel, ModernBertConfig(**SMALL))}),
    "lengths": (_native, {"query_length": 6, "document_length": 11}),
    "skipped": (_native, {"skip": ["e", "b", "not a word"]}),
    "filled up": (_native, {"query_expansion": FIXED}),
    "filled up and attended to": (_native, {"query_expansion": FIXED | {"attend": True}}),
    "filled up with a token": (_native, {"query_expansion": FIXED | {"token": "z"}}),
    "filled up, but not cut": (_native, {"query_expansion": FIXED | {"strategy": "min"}}),
    "PyLate": (_pylate, {}),
    "PyLate, attended to": (_pylate, {"attend_to_expansion_tokens": True, "skiplist_words": ["e"]}),
    "PyLate, not filled up": (_pylate, {"do_query_expansion": False}),
    "Stanford": (_stanford, {}),
    "Stanford, attended to": (_stanford, {"attend_to_mask_tokens": True, "mask_punctuation": False}),
}


ON_GPU = ("skipped", "filled up", "PyLate, attended to", "Stanford")
"""Where the engine has more to do than others."""


def _built(folder: Path, target: Target) -> Model:
    source = inspect_source(folder)
    out = folder.with_name(f"{folder.name}-{target}")
    out.mkdir()
    if target == "gpu-fp16":
        export_fp16(source, out)
    else:
        export_onnx(source, out / "graph.onnx")
        optimize_offline(out / "graph.onnx", out / MODEL_FILE)
    manifest = describe(out, source, Source("there", "1"), "m", target)
    if target == "gpu-fp16":
        return load_model(out, manifest, lambda where, what: TorchEngine(where, what, **_ON_CPU))
    return load_model(out, manifest, open_cpu_engine)


def _vectors(model: Model, asked: Any) -> list[FloatMatrix]:
    request = EmbedTokensRequest("m", TEXTS, input_type=asked)
    return list(model.run(completed(model.tokenize_late(request))))


@pytest.mark.parametrize("case", FOLDERS)
def test_tokens_vectors_are_the_original_s(case: str, tmp_path: Path) -> None:
    """As many, of queries and of documents."""
    make, said = FOLDERS[case]
    folder = make(tmp_path / "model", **said)
    original = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)
    queries = original.encode_query(list(TEXTS), convert_to_numpy=True)
    documents = original.encode_document(list(TEXTS), convert_to_numpy=True)
    targets: dict[Target, float] = {"cpu-fp32": 1e-5}
    if case in ON_GPU:
        targets["gpu-fp16"] = 1e-2
    for target, tolerance in targets.items():
        model = _built(folder, target)
        for asked, truth in (("query", queries), ("document", documents)):
            rows = _vectors(model, asked)
            assert [len(row) for row in rows] == [len(right) for right in truth]
            for row, right in zip(rows, truth, strict=True):
                assert np.abs(row - right).max() < tolerance


def test_a_text_alone_has_the_vectors_that_it_has_among_others(tmp_path: Path) -> None:
    """A query that is filled up is no longer than another, and its padding counts nowhere."""
    model = _built(_native(tmp_path / "model", query_expansion=FIXED), "cpu-fp32")
    for asked in ("query", "document"):
        together = _vectors(model, asked)
        for text, right in zip(TEXTS, together, strict=True):
            request = EmbedTokensRequest("m", (text,), input_type=asked)
            (alone,) = model.run(completed(model.tokenize_late(request)))
            assert np.abs(alone - right).max() < 1e-6


@pytest.mark.parametrize(
    ("make", "change", "said"),
    [
        (_native, {"query_expansion": {"strategy": "other", "length": 3}}, "Invalid enum value"),
        (_native, {"query_expansion": {"strategy": "fixed", "length": 99}}, "has 40 positions"),
        (_native, {"query_expansion": FIXED | {"token": "nowhere"}}, "does not have"),
        (_stanford, {"query_maxlen": 0}, "query_maxlen"),
    ],
    ids=("strategy", "length", "token", "query_maxlen"),
)
def test_what_cannot_be_read_as_it_says_is_refused(
    make: Any, change: Any, said: str, tmp_path: Path
) -> None:
    """Naming what is wrong."""
    folder = make(tmp_path / "model", **change)
    with pytest.raises(InvalidInput, match=said) as refusal:
        inspect_source(folder)
    assert refusal.value.field == "model"


def test_masks_that_keep_some_tokens_only_are_refused(tmp_path: Path) -> None:
    """Those of models for images."""
    folder = _native(tmp_path / "model")
    edit_json(folder / "2_MultiVectorMask" / "config.json", keep_only_token_ids=[4])
    with pytest.raises(InvalidInput, match="keep the vectors of some tokens only"):
        inspect_source(folder)
