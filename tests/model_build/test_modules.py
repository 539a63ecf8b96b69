"""Poolings and the modules after them: built, served and compared with sentence-transformers' encode."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    Transformer,
)
from torch import nn
from transformers import BertModel

from model_build.layers import read_layers
from model_build.source import inspect_source
from shared.errors import BlitzError
from shared.vectors import apply_layer
from tests.model_build.built import embed, served
from tests.model_build.command import CONFIG, save_letters

WIDTH = CONFIG.hidden_size
TEXTS = ["a", "the quick brown fox jumps over the lazy dog", "Hello, World!", "ümlaut 日本", "x " * 90]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights so uneven that poolings differ."""
    torch.manual_seed(0)
    model = BertModel(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return save_letters(model, tmp_path_factory.mktemp("source") / "bert")


def _norm(width: int) -> LayerNorm:
    module = LayerNorm(width)
    nn.init.normal_(module.norm.weight)
    nn.init.normal_(module.norm.bias)
    return module


ACTIVATIONS: list[nn.Module] = [
    nn.Identity(),
    nn.Tanh(),
    nn.ReLU(),
    nn.GELU(),
    nn.Sigmoid(),
    nn.SiLU(),
    nn.LeakyReLU(),
    nn.ELU(),
    nn.Softplus(),
    nn.Mish(),
]
CHAINS: dict[str, Callable[[], list[Any]]] = {
    "a pooling of its own": lambda: [Pooling(WIDTH, "mean_sqrt_len_tokens")],
    "two poolings": lambda: [Pooling(WIDTH, ("mean", "cls"))],
    "all poolings": lambda: [Pooling(WIDTH, Pooling.POOLING_MODES), Normalize()],
    "two poolings, a dense layer": lambda: [
        Pooling(WIDTH, ("max", "lasttoken")),
        Dense(2 * WIDTH, 5, bias=False),
        Normalize(),
    ],
    "dense layers": lambda: [
        Pooling(WIDTH),
        Dense(WIDTH, 96, activation_function=nn.GELU()),
        Dense(96, 8, bias=False, activation_function=nn.Identity()),
        Normalize(),
    ],
    "a norm": lambda: [Pooling(WIDTH), _norm(WIDTH)],
    "a norm, dropout, a dense layer": lambda: [
        Pooling(WIDTH, "cls"),
        Dropout(0.5),
        _norm(WIDTH),
        Dense(WIDTH, 12),
        _norm(12),
        Dropout(0.1),
    ],
    "unit length in between": lambda: [Pooling(WIDTH), Normalize(), Dense(WIDTH, 12)],
    "unit length, then dropout": lambda: [Pooling(WIDTH), Normalize(), Dropout(0.1)],
}


def saved(bert: Path, folder: Path, *modules: Any) -> Path:
    """As sentence-transformers saves a model of these modules."""
    model = SentenceTransformer(modules=[Transformer(str(bert)), *modules], device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.mark.parametrize("chain", CHAINS)
def test_vectors_are_those_of_sentence_transformers_own_modules(
    chain: str, bert: Path, tmp_path: Path
) -> None:
    """Their lengths too, on the CPU and on the GPU's engine."""
    torch.manual_seed(0)
    folder = saved(bert, tmp_path / "model", *CHAINS[chain]())
    theirs = SentenceTransformer(str(folder), device="cpu")
    expected = theirs.encode(TEXTS, show_progress_bar=False)
    model = served(folder, "cpu-fp32", tmp_path / "cpu")
    assert (model.manifest.dimensions, model.manifest.normalize) == (
        theirs.get_embedding_dimension(),
        "Normalize" in [type(each).__name__ for each in theirs][-2:] and "unit length in" not in chain,
    )
    np.testing.assert_allclose(embed(model, TEXTS), expected, atol=3e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda each: type(each).__name__)
def test_an_activation_is_torchs(activation: nn.Module, tmp_path: Path) -> None:
    """From far below zero to far above, where exponentials overflow."""
    module = Dense(1, 1, activation_function=activation, init_weight=torch.ones(1, 1), bias=False)
    module.save(str(tmp_path))
    (layer,) = read_layers([("Dense", tmp_path)], 1).layers
    numbers = np.array([-1e4, -90, -20, -3, -0.7, -1e-6, 0, 1e-6, 0.7, 3, 20, 90, 1e4], np.float32)
    expected = module({"sentence_embedding": torch.from_numpy(numbers[:, None])})["sentence_embedding"]
    answered = apply_layer(numbers[:, None], layer)
    assert answered.dtype == np.float32
    np.testing.assert_allclose(answered, expected.detach().numpy(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("chain", ["all poolings", "a norm, dropout, a dense layer"])
def test_the_gpus_engine_gives_the_same_vectors(chain: str, bert: Path, tmp_path: Path) -> None:
    """From FP16 weights, so not to the last digit."""
    torch.manual_seed(0)
    folder = saved(bert, tmp_path / "model", *CHAINS[chain]())
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)
    vectors = embed(served(folder, "gpu-fp16", tmp_path / "gpu"), TEXTS)
    assert vectors.shape == expected.shape
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((vectors * expected).sum(axis=1) / lengths).min() > 0.999


def _edit(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(config | values))

    return change


def _weights(module: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / module / "model.safetensors") | changes
        kept = {name: each for name, each in tensors.items() if each is not None}
        save_file(kept, folder / module / "model.safetensors")

    return change


def _module(kind: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        modules[-1]["type"] = f"sentence_transformers.models.{kind}"
        (folder / "modules.json").write_text(json.dumps(modules))

    return change


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a norm's width": (
        _weights("2_LayerNorm", **{"norm.bias": np.zeros(3, np.float32)}),
        "norm.weight and",
    ),
    "a norm without weights": (_weights("2_LayerNorm", **{"norm.weight": None}), "norm.weight and"),
    "a norm of NaN": (
        _weights("2_LayerNorm", **{"norm.bias": np.full(WIDTH, np.nan, np.float32)}),
        "norm.bias of a LayerNorm layer has NaN",
    ),
    "an activation of its own": (
        _edit("3_Dense/config.json", activation_function="evil.GELU"),
        "activation evil.GELU, not one of torch's Identity, Tanh",
    ),
    "an activation with arguments": (
        _edit("3_Dense/config.json", activation_function="torch.nn.modules.activation.PReLU"),
        "activation torch.nn.modules.activation.PReLU, not one",
    ),
    "a residual": (_edit("3_Dense/config.json", use_residual=True), "a residual"),
    "another input": (_edit("3_Dense/config.json", module_input_name="token_embeddings"), "an input"),
    "unit tokens": (_edit("4_Normalize/config.json", module_input_name="token_embeddings"), "an input"),
    "weighted layers": (_module("WeightedLayerPooling"), "a WeightedLayerPooling module"),
    "a pooling of no name": (_edit("1_Pooling/config.json", pooling_mode=["mean", "sum"]), "mean + sum"),
    "no pooling at all": (_edit("1_Pooling/config.json", pooling_mode=[]), "pooling  is not made of"),
    "very many poolings": (_edit("1_Pooling/config.json", pooling_mode=["mean"] * 99), "is not made of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_module_that_cannot_be_served_is_refused(case: str, bert: Path, tmp_path: Path) -> None:
    """By its name, with what is wrong with it."""
    change, message = REFUSED[case]
    modules = [Pooling(WIDTH), LayerNorm(WIDTH), Dense(WIDTH, 8), Normalize()]
    folder = saved(bert, tmp_path / "model", *modules)
    change(folder)
    with pytest.raises(BlitzError) as refusal:
        inspect_source(folder)
    assert message in str(refusal.value)
