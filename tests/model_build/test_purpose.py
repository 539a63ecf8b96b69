"""Folders that are other kinds of models, or do not say how they are pooled, are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model_build.__main__ import PoolingName
from model_build.source import inspect_source
from shared.errors import InvalidInput
from shared.vectors import Pooling
from tests.tiny_torch import DECODER, SMALL, edit_json, save_random, tiny_cross_encoder, tiny_model

Make = Callable[[Path], Any]


def _plain(kind: Any, config: Any, **said: Any) -> Make:
    def make(folder: Path) -> None:
        save_random(folder, kind, config, seed=0)
        edit_json(folder / "config.json", **said)

    return make


def _stated(**said: Any) -> Make:
    """A sentence-transformers model with mean pooling, whose config.json says this too."""

    def make(folder: Path) -> None:
        edit_json(tiny_model(folder) / "config.json", **said)

    return make


def _pylate(folder: Path) -> None:
    tiny_model(folder)
    edit_json(folder / "config_sentence_transformers.json", model_type="ColBERT")


def _stanford(folder: Path) -> None:
    _plain(BertModel, BertConfig(**SMALL))(folder)
    (folder / "artifact.metadata").write_text(json.dumps({"dim": 32}))


BERT = BertConfig(**SMALL)
REFUSED: dict[str, tuple[Make, str]] = {
    "BERT": (
        _plain(BertModel, BERT),
        "no modules.json, so this is no sentence-transformers model but a BertModel, which says nothing "
        "about pooling: give it as --pooling (mean, cls, max, last, weighted_mean, mean_sqrt_length)",
    ),
    "a language model": (
        _plain(Qwen3ForCausalLM, Qwen3Config(**DECODER)),
        "a Qwen3ForCausalLM, a language model, whose text vector is the last token's if it was trained",
    ),
    "SPLADE": (
        _plain(BertForMaskedLM, BERT),
        "a BertForMaskedLM, a masked language model, as sparse encoders (SPLADE) are. If it was trained "
        "as one, say --pooling splade",
    ),
    "pretrained": (_plain(BertForPreTraining, BERT), "--pooling mean or cls"),
    "ColBERT": (
        _plain(BertModel, BERT, architectures=["HF_ColBERT"]),
        "model.safetensors has no linear.weight that fits tokens of 32 dimensions",
    ),
    "ColBERT by its metadata": (_stanford, "ColBERT's artifact.metadata, but config.json does not say"),
    "ColBERT of PyLate": (_pylate, "a late-interaction model is a Transformer, Dense, LayerNorm"),
    "JinaBERT without auto_map": (
        _stated(architectures=["JinaBertModel"]),
        "config.json says JinaBertModel, a class that transformers does not have",
    ),
    "JinaBERT by its positions": (
        _stated(position_embedding_type="alibi"),
        "position_embedding_type 'alibi', which transformers' own bert does not have",
    ),
    "a name of transformers that is no model": (
        _stated(architectures=["logging"]),
        "says logging, a cl",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_kind_is_refused_by_name(case: str, tmp_path: Path) -> None:
    """What the folder is, and what to do."""
    make, message = REFUSED[case]
    make(tmp_path / "model")
    with pytest.raises(InvalidInput) as refusal:
        inspect_source(tmp_path / "model")
    assert message in refusal.value.message
    assert refusal.value.field == "model"


@pytest.mark.parametrize("case", ["BERT", "a language model", "SPLADE", "pretrained"])
def test_a_pooling_that_is_given_makes_it_an_embedding_model(case: str, tmp_path: Path) -> None:
    """The operator knows what it was trained for."""
    REFUSED[case][0](tmp_path / "model")
    source = inspect_source(tmp_path / "model", "last")
    assert (source.task, source.pooling) == ("embedding", "last")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (tiny_model, "modules.json states the pooling"),
        (tiny_cross_encoder, "a cross-encoder pools noth"),
    ],
)
def test_a_pooling_that_is_stated_is_not_given(make: Make, said: str, tmp_path: Path) -> None:
    """Two answers to one question: neither wins in silence."""
    with pytest.raises(InvalidInput, match=said) as refusal:
        inspect_source(make(tmp_path / "model"), "mean")
    assert refusal.value.field == "pooling"


def test_the_option_has_every_pooling() -> None:
    """By the names of manifests."""
    assert {each.value for each in PoolingName} == {*get_args(Pooling), "splade"}
