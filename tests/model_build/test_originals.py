"""The gate's truth is sentence-transformers on the folder: what agrees passes, all else is seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    ElectraConfig,
    ElectraModel,
    EuroBertConfig,
    EuroBertModel,
    GteConfig,
    GteModel,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    ModernBertConfig,
    ModernBertModel,
    NomicBertConfig,
    NomicBertModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model_build.describe import describe, file_of
from model_build.evaluate import check_length, evaluate
from model_build.export import export_onnx, optimize_offline
from model_build.fidelity import TARGETS, compare_vectors, fidelity_shortfalls
from model_build.gates import gates_of, shortfalls
from model_build.odd_texts import ODD_TEXTS
from model_build.reference import Reference
from model_build.serving import Served
from model_build.source import SourceModel, inspect_source
from shared.errors import InvalidArtefact
from shared.models.manifest import Manifest, Source
from shared.vectors import Pooling
from tests.model_build.command import CONFIG, save_letters
from tests.tiny_torch import DECODER, SMALL, edit_json, save_tiny, state_pooling

TEXTS = [text for texts in ODD_TEXTS.values() for text in texts] + ["a b c d e f g", "h i", "a b " * 40]
NO_IDS = {"bos_token_id": None, "eos_token_id": None}

# Architectures beside those of test_export. The pooling: of a folder that states none.
BUILT: dict[str, tuple[Any, Any, Pooling | None]] = {
    "albert": (AlbertModel, AlbertConfig(**SMALL, embedding_size=16), None),
    "electra": (ElectraModel, ElectraConfig(**SMALL, embedding_size=16), None),
    "deberta": (
        DebertaV2Model,
        DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]),
        None,
    ),
    "modernbert": (
        ModernBertModel,
        ModernBertConfig(**SMALL, local_attention=8, cls_token_id=0, sep_token_id=2, **NO_IDS),
        None,
    ),
    "nomic_bert": (NomicBertModel, NomicBertConfig(**SMALL), None),
    "gte": (GteModel, GteConfig(**SMALL), None),
    "jina_embeddings_v3": (JinaEmbeddingsV3Model, JinaEmbeddingsV3Config(**SMALL), None),
    "eurobert": (EuroBertModel, EuroBertConfig(**SMALL, **NO_IDS), None),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**DECODER), "last"),
}


def build(folder: Path, out: Path, pooling: Pooling | None = None) -> tuple[SourceModel, Manifest]:
    """For the CPU in FP32, as the command does."""
    source = inspect_source(folder, pooling)
    out.mkdir()
    export_onnx(source, out / "raw.onnx")
    optimize_offline(out / "raw.onnx", out / "model.onnx")
    return source, describe(out, source, Source("here", "1"), "tiny", "cpu-fp32")


@pytest.mark.parametrize("architecture", BUILT)
def test_a_built_model_is_the_folder_as_sentence_transformers_reads_it(
    architecture: str, tmp_path: Path
) -> None:
    """Over texts of every kind. sentence-transformers is given the folder, and nothing that we read."""
    kind, config, pooling = BUILT[architecture]
    folder = save_tiny(tmp_path / "model", kind, config)
    if pooling is None:
        state_pooling(folder)
    source, manifest = build(folder, tmp_path / "built", pooling)
    truth = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    served = Served(tmp_path / "built", manifest)
    try:
        found = compare_vectors(
            served.embed(TEXTS, None),
            truth.encode(TEXTS, normalize_embeddings=True, batch_size=8),
            TARGETS["cpu-fp32"],
        )
        check_length(served, Reference(folder, source))
    finally:
        served.close()
    assert fidelity_shortfalls(found, TARGETS["cpu-fp32"]) == []


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, SourceModel, Manifest]:
    """Folder and build of a BERT that is pooled by its first token."""
    home = tmp_path_factory.mktemp("sound")
    torch.manual_seed(0)
    folder = save_letters(BertModel(CONFIG), home / "model")
    state_pooling(folder, pooling_mode="cls")
    return folder, home / "built", *build(folder, home / "built")


def _manifest(**fields: Any) -> Callable[[Path, Manifest], Manifest]:
    return lambda _, manifest: msgspec.structs.replace(manifest, **fields)


def _tokenizer(built: Path, manifest: Manifest) -> Manifest:
    """Upper case is no longer read as lower case."""
    edit_json(built / "tokenizer.json", normalizer=None)
    return _as_they_are(built, manifest)


def _other_weights(built: Path, manifest: Manifest) -> Manifest:
    other = state_pooling(save_letters(BertModel(CONFIG), built / "other"))
    export_onnx(inspect_source(other), built / "raw.onnx")
    optimize_offline(built / "raw.onnx", built / "model.onnx")
    return _as_they_are(built, manifest)


def _as_they_are(built: Path, manifest: Manifest) -> Manifest:
    files = tuple(file_of(built / file.name) for file in manifest.files)
    return msgspec.structs.replace(manifest, files=files)


MUTATIONS: dict[str, Callable[[Path, Manifest], Manifest]] = {
    **{
        f"pooled by {name}": _manifest(pooling=name) for name in ("mean", "max", "last", "weighted_mean")
    },
    "another tokenizer": _tokenizer,
    "other weights": _other_weights,
}


@pytest.mark.parametrize("mutation", [None, *MUTATIONS])
def test_a_built_model_that_is_broken_falls_short(
    mutation: str | None,
    sound: tuple[Path, Path, SourceModel, Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gate itself, with few of its usual texts: the sound build passes, each broken one does not."""
    monkeypatch.setattr(
        "model_build.evaluate.sample_texts", lambda: ["a b c d e f g", "h i", "j", "k l"] * 2
    )
    folder, built, source, manifest = sound
    broken = Path(shutil.copytree(built, tmp_path / "built"))
    if mutation is not None:
        manifest = MUTATIONS[mutation](broken, manifest)
    quality = evaluate(broken, manifest, Reference(folder, source))
    short = shortfalls(quality, "cpu-fp32", gates_of("cpu-fp32"))
    assert bool(short) == (mutation is not None), short
    assert quality.limits["cosine_minimum"] == 0.9999


@pytest.mark.parametrize("tokens", [8, 63])
def test_a_model_that_stops_reading_elsewhere_falls_short(
    tokens: int, sound: tuple[Path, Path, SourceModel, Manifest]
) -> None:
    """The model has 64 positions."""
    folder, built, source, manifest = sound
    shorter = msgspec.structs.replace(manifest, max_tokens=tokens)
    with pytest.raises(InvalidArtefact, match=f"reads {tokens} tokens, and sentence-transformers 64"):
        evaluate(built, shorter, Reference(folder, source))
