"""A build holds one original at a time, once, and nothing else of its size beside it."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import BertConfig, BertForSequenceClassification, BertModel

from model_build import originals, sensitivity
from model_build.describe import describe
from model_build.evaluate import evaluate
from model_build.graphs import open_graph
from model_build.make import convert
from model_build.progress import Progressing
from model_build.ranges import calibrate_int8
from model_build.reference import Reference
from model_build.samples import sample_rankings
from model_build.sensitivity import Sensitivity
from model_build.serving import Served
from model_build.source import inspect_source
from model_build.tasks import Answers, Evaluation, Pairs
from shared.models.manifest import Source
from tests.model_build.command import CONFIG, save_letters
from tests.tiny_torch import state_pooling, tiny_model

_WORDS = ["a b", "c", "d e f", "g h"]
_PAIRS = Pairs("pairs", [1.0, 2.0, 3.0, 4.0], _WORDS, _WORDS[::-1])
_ANSWERS = Answers("answers", [True, False], ["a", "a"], ["b c", "d"])


def _config() -> BertConfig:
    config: BertConfig = copy.deepcopy(CONFIG)
    config.num_labels = 1
    return config


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """The originals that were loaded."""
    found: list[weakref.ref[Any]] = []

    def counted(kind: type[Any]) -> Any:
        def load(*arguments: Any, **options: Any) -> Any:
            model = kind(*arguments, **options)
            found.append(weakref.ref(model))
            return model

        return load

    for kind in (SentenceTransformer, CrossEncoder):
        monkeypatch.setattr(originals, kind.__name__, counted(kind))
    return found


@pytest.mark.parametrize(
    ("kind", "task"), [(BertModel, _PAIRS), (BertForSequenceClassification, _ANSWERS)]
)
def test_one_original_answers_all_comparisons_and_is_gone_before_the_built_model_runs(
    kind: type[Any],
    task: Evaluation,
    loaded: list[weakref.ref[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For the ranges of int8, for the gate, and for each further build with layers in FP32."""
    for module in ("evaluate", "ranges"):
        monkeypatch.setattr(f"model_build.{module}.sample_texts", lambda *_: _WORDS * 3)
    monkeypatch.setattr("model_build.evaluate.sample_rankings", lambda: sample_rankings()[:2])
    beside: list[bool] = []
    run = Served._run

    def counted_run(served: Served, *arguments: Any) -> Any:
        beside.append(any(each() is not None for each in loaded))
        return run(served, *arguments)

    monkeypatch.setattr(Served, "_run", counted_run)
    torch.manual_seed(0)
    folder, built = save_letters(kind(_config()), tmp_path / "model"), tmp_path / "built"
    if kind is BertModel:
        state_pooling(folder)
    source = inspect_source(folder)
    built.mkdir()
    convert(built, source, "cpu-fp32", Progressing(1))
    manifest = describe(built, source, Source("here", "1"), "tiny", "cpu-fp32")
    original = Reference(folder, source)
    calibrate_int8([original])
    first, again = (evaluate(built, manifest, original, [task]) for _ in range(2))
    assert len(loaded) == 1
    assert beside
    assert not any(beside)
    assert any(name.endswith("(original)") for name in first.evaluations)
    assert str(first.evaluations) == str(again.evaluations)  # one may be NaN


def test_the_search_for_layers_ends_before_a_build_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its graph has every layer twice. A second search opens it again."""
    sessions: list[weakref.ref[ort.InferenceSession]] = []

    def opened(*arguments: Any) -> ort.InferenceSession:
        session = open_graph(*arguments)
        sessions.append(weakref.ref(session))
        return session

    monkeypatch.setattr(sensitivity, "open_graph", opened)
    source = inspect_source(tiny_model(tmp_path / "model", "bert"))
    convert(tmp_path, source, "cpu-int8", Progressing(1))
    graphs = tmp_path / "graphs"
    search = Sensitivity(graphs / "fp32.onnx", graphs / "int8.onnx", source)
    for number in (1, 2):
        assert next(search.kept_sets(lambda *_: True, 0.5)).layers
        assert len(sessions) == number
        assert sessions[-1]() is None
