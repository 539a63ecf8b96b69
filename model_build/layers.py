"""Reads the modules after a model's Pooling: Dense, LayerNorm, Dropout and Normalize.

It does not know what comes before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from model_build.configuration import DenseConfig, NormalizeConfig
from model_build.folder import fields_of, read_json, refused, refusing
from model_build.formats import no_weights
from model_build.weights import WEIGHTS, check_numbers, read_shapes
from shared.errors import printable
from shared.models.manifest import MAX_DIMENSIONS
from shared.vectors import Activation, DenseLayer, Layer, NormLayer, UnitLayer

KINDS = ("Dense", "LayerNorm", "Dropout", "Normalize")
"""Supported modules, by class name without package."""

CONFIGURED = ("Dense", "LayerNorm")
"""Modules that need a config.json. The others have no settings, and git does not keep empty folders."""

_ACTIVATIONS: dict[str, Activation] = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
    "LeakyReLU": "leaky_relu",
    "ELU": "elu",
    "Softplus": "softplus",
    "Mish": "mish",
}
_EMBEDDING, _TOKENS = "sentence_embedding", "token_embeddings"


@dataclass(frozen=True, slots=True)
class Layers:
    """layers: without a final Normalize, which sets `normalize`. width: dimensions of the output."""

    layers: tuple[Layer, ...]
    normalize: bool
    width: int


def read_layers(modules: Sequence[tuple[str, Path]], width: int, *, by_token: bool = False) -> Layers:
    """The layers of `modules`, (kind, folder) in order. width: dimensions of the pooled vectors.

    by_token: whether the vectors are tokens', of a late-interaction model.

    Raises InvalidInput (field "model") for unsupported settings or weights that do not fit, and
    InvalidArtefact for NaN or infinite weights.
    """
    vectors = _TOKENS if by_token else _EMBEDDING
    layers: list[Layer] = []
    for kind, folder in modules:
        match kind:
            case "Dense":
                layer = _dense(folder, width, vectors)
                width = layer.weight.shape[0]
                layers.append(layer)
            case "LayerNorm":
                layers.append(_norm(folder, width))
            case "Normalize":
                _check_normalize(folder, vectors)
                layers.append(UnitLayer())
            case "Dropout":
                pass  # active only in training
    normalize = bool(layers) and isinstance(layers[-1], UnitLayer)
    while layers and isinstance(layers[-1], UnitLayer):
        layers.pop()
    return Layers(tuple(layers), normalize, width)


def _dense(folder: Path, width: int, vectors: str) -> DenseLayer:
    config = fields_of(read_json(folder / "config.json") or {}, DenseConfig, "Dense's config.json")
    package, _, name = config.activation_function.rpartition(".")
    if name not in _ACTIVATIONS or package.split(".")[0] != "torch":
        raise refused(
            f"a Dense layer has activation {printable(config.activation_function)}, not one of torch's "
            f"{', '.join(_ACTIVATIONS)}"
        )
    names = {each or vectors for each in (config.module_input_name, config.module_output_name)}
    if config.use_residual or names != {vectors}:
        raise refused(f"a Dense layer has a residual, or an input or output other than {vectors}")
    shapes = _shapes(folder)
    weight, bias = shapes.get("linear.weight"), shapes.get("linear.bias")
    if weight is None:
        raise refused("a Dense layer has no linear.weight")
    out = weight[0] if weight else 0
    if weight != [out, width] or not 1 <= out <= MAX_DIMENSIONS or bias not in (None, [out]):
        raise refused(f"a Dense layer's weights do not fit vectors of {width} dimensions")
    tensors = _tensors(folder, "Dense")
    return DenseLayer(tensors["linear.weight"], tensors.get("linear.bias"), _ACTIVATIONS[name])


def _norm(folder: Path, width: int) -> NormLayer:
    shapes = _shapes(folder)
    if any(shapes.get(name) != [width] for name in ("norm.weight", "norm.bias")):
        raise refused(
            f"a LayerNorm needs norm.weight and norm.bias that fit vectors of {width} dimensions"
        )
    tensors = _tensors(folder, "LayerNorm")
    return NormLayer(tensors["norm.weight"], tensors["norm.bias"])


def _check_normalize(folder: Path, vectors: str) -> None:
    stated = fields_of(
        read_json(folder / "config.json") or {}, NormalizeConfig, "Normalize's config.json"
    )
    if {stated.module_input_name, stated.module_output_name} - {None, vectors}:
        raise refused(f"a Normalize has an input or output other than {vectors}")


def _shapes(folder: Path) -> dict[str, list[int]]:
    if not (folder / WEIGHTS).is_file():
        raise no_weights(folder, WEIGHTS)
    return read_shapes(folder / WEIGHTS)


def _tensors(folder: Path, kind: str) -> dict[str, NDArray[np.float32]]:
    """Name -> tensor in FP32, because numpy has no bfloat16."""
    with refusing(f"a {kind} layer's weights cannot be read"):
        tensors = {name: each.to(torch.float32) for name, each in load_file(folder / WEIGHTS).items()}
    check_numbers((f"{name} of a {kind} layer", each) for name, each in tensors.items())
    return {name: each.numpy() for name, each in tensors.items()}
