"""Calibration inputs from an operator's file, and which layers read one row of a text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx
import pytest
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedConfig,
)

from model_build.calibration import calibration_inputs, head_layers
from model_build.export import export_onnx
from model_build.linears import linears, matrices
from model_build.make import quantize
from model_build.source import inspect_source
from shared.contracts import TokenPair
from shared.errors import InvalidInput
from tests.tiny_torch import CLASSIFIERS, ENCODERS, SMALL, save_random

PAIRED = "a\tb c\nd\te\n"


def test_a_line_is_a_text(tiny: Path, tmp_path: Path) -> None:
    """Blank lines count for nothing; of very many, some from all of the file are taken."""
    source, file = inspect_source(tiny), tmp_path / "texts"
    file.write_text("a b\n\n  \nc\n")
    assert [len(each) for each in calibration_inputs(source, file)] == [4, 3]
    file.write_text("a\n" * 400 + "a b\n" * 400)
    taken = [len(each) for each in calibration_inputs(source, file)]
    assert len(taken) <= 300
    assert {taken.count(3), taken.count(4)} == {len(taken) // 2, len(taken) - len(taken) // 2}


def test_a_line_is_a_pair_for_a_cross_encoder(tiny: Path, tmp_path: Path) -> None:
    """A query, a tab, a document."""
    file = tmp_path / "pairs"
    file.write_text(PAIRED)
    source = dataclasses.replace(inspect_source(tiny), task="cross-encoder")
    first, second = calibration_inputs(source, file)
    assert isinstance(first, TokenPair)
    assert (len(first), len(second)) == (6, 5)


@pytest.mark.parametrize(
    ("task", "content", "why"),
    [
        ("embedding", b"\n \n", "a text a line"),
        ("embedding", b"\xff\xfe", "UTF-8"),
        ("embedding", None, "UTF-8"),
        ("cross-encoder", b"no tab\n", "a query, a tab and a document"),
        ("cross-encoder", b"a\tb\tc\n", "a query, a tab and a document"),
        ("cross-encoder", b"a\t\n", "a query, a tab and a document"),
    ],
)
def test_what_is_no_calibration_is_refused(
    tiny: Path, tmp_path: Path, task: str, content: bytes | None, why: str
) -> None:
    """None: there is no such file."""
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    source = dataclasses.replace(inspect_source(tiny), task=task)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=why) as refused:
        calibration_inputs(source, file)
    assert refused.value.field == "calibration"


def _classifiers() -> dict[str, tuple[Any, PreTrainedConfig]]:
    """Heads of one layer and of two, with biases and without, of the first token and of the mean."""
    known: dict[str, tuple[Any, PreTrainedConfig]] = {
        name: (CLASSIFIERS[name], ENCODERS[name][1]) for name in ("bert", "distilbert")
    }
    for pooling in ("cls", "mean"):
        config = ModernBertConfig(**SMALL, classifier_pooling=pooling, cls_token_id=0, sep_token_id=2)
        known[f"modernbert-{pooling}"] = ModernBertForSequenceClassification, config
    distances = DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"])
    return known | {"deberta-v2": (DebertaV2ForSequenceClassification, distances)}


@pytest.mark.parametrize("name", sorted(_classifiers()))
def test_the_layers_of_a_head_stay_in_fp32(name: str, tmp_path: Path) -> None:
    """They read a row a text, so that FP32 costs no time there. No other layer does."""
    kind, config = _classifiers()[name]
    config.num_labels = 3
    source = inspect_source(save_random(tmp_path / "model", kind, config, seed=0))
    (tmp_path / "graphs").mkdir()
    fp32, int8 = (tmp_path / "graphs" / f"{each}.onnx" for each in ("fp32", "int8"))
    export_onnx(source, fp32)
    graph = onnx.load(fp32).graph
    sizes = {layer.y: matrices(graph)[layer.weight].dims for layer in linears(graph)}
    head = head_layers(fp32, source)
    assert sorted(sorted(sizes[y]) for y in head) == [[3, 32], [32, 32]]
    quantize(tmp_path, tmp_path, source)
    exact = {layer.y for layer in linears(onnx.load(int8).graph)}
    assert exact == set(head)


def test_an_embedding_model_has_no_head(tiny: Path, tmp_path: Path) -> None:
    """Its graph ends at the tokens, and what follows is not in it."""
    source = inspect_source(tiny)
    export_onnx(source, tmp_path / "fp32.onnx")
    assert head_layers(tmp_path / "fp32.onnx", source) == ()
