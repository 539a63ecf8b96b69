"""Checks a configuration against its weights before allocating anything of their size.

transformers builds whatever a configuration describes and initialises missing weights at random: a few
bytes can describe a hundred thousand layers, or one with a billion numbers. It does not know what the
tensors mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn.modules import module as torch_modules
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
)

from model_build.configuration import WeightsIndex
from model_build.folder import fields_of, read_json, refused, refusing
from model_build.formats import no_weights
from shared.engines.torch import ENCODERS_OF
from shared.errors import InvalidArtefact
from shared.models.manifest import Head
from shared.storage.regular_files import open_regular

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

MAX_HEADER_BYTES = 16 << 20
MAX_MODULES = 20_000
"""torch modules of one model. BERT has some 17 per layer."""

# Allowance for poolers, heads and position tables that were not saved.
_LACKING, _LACKING_ELEMENTS = 4, 1 << 20


_CLASSES: dict[Head, Any] = {
    "none": AutoModel,
    "words": AutoModelForMaskedLM,
    "labels": AutoModelForSequenceClassification,
}
"""transformers' class of a model with such a head."""


def count_elements(folder: Path) -> int:
    """Elements in the safetensors files of a transformer. Raises InvalidInput unless all are valid."""
    if (folder / WEIGHTS).is_file():  # transformers prefers it to the index
        return sum(math.prod(shape) for shape in read_shapes(folder / WEIGHTS).values())
    if not (folder / INDEX).is_file():
        raise no_weights(folder, WEIGHTS)
    index = fields_of(read_json(folder / INDEX), WeightsIndex, INDEX)
    shards = {name: _shard(folder, name) for name in set(index.weight_map.values())}
    for tensor, name in index.weight_map.items():
        if tensor not in shards[name]:
            raise refused(f"{INDEX} lists a tensor in {name} that is not there")
    return sum(math.prod(shape) for shapes in shards.values() for shape in shapes.values())


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Tensor -> shape, from the header of a safetensors file. Raises InvalidInput unless it is valid.

    The library checks that offsets are in order, fill the file, and fit shapes and types. It reads the
    header, which is capped here, and maps the rest.
    """
    with refusing(f"{path.name} is not a valid safetensors file"):
        with open_regular(path) as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise refused(f"the header of {path.name} has more than {MAX_HEADER_BYTES} bytes")
        with safe_open(path, framework="numpy") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118


def _shard(folder: Path, name: str) -> dict[str, list[int]]:
    if name != Path(name).name or "\\" in name or "\0" in name:
        raise refused(f"{INDEX} names a file outside the model's folder")
    if not (folder / name).is_file():
        raise refused(f"{name}, which {INDEX} names, is missing")
    return read_shapes(folder / name)


def check_described(config: Any, held: int, head: Head) -> int:
    """Elements of the weights that `config` describes, shared ones once.

    Raises InvalidInput if they are more than the weights contain.

    config: of transformers. held: elements in the weights. head: what it has behind its layers.
    """
    kind = auto_class(config.model_type, head)
    # On the device "meta" tensors have shapes but no memory.
    with (
        refusing(f"config.json is not valid for {config.model_type}"),
        _counted_construction(_LACKING * held + _LACKING_ELEMENTS),
        torch.device("meta"),
    ):
        model = kind.from_config(config, attn_implementation="eager", trust_remote_code=False)
    return sum(each.numel() for each in model.parameters())


def auto_class(model_type: str, head: Head) -> Any:
    """transformers' automatic class that builds or loads such a model."""
    if head == "none" and model_type in ENCODERS_OF:
        return AutoModelForTextEncoding
    return _CLASSES[head]


def check_numbers(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise InvalidArtefact if one of the named weights has NaN or infinite numbers."""
    for name, weight in weights:
        if not torch.isfinite(weight).all():
            raise InvalidArtefact(
                f"the weight {name} has NaN or infinite numbers, so all results would be NaN: the "
                "model was damaged in training or conversion"
            )


@contextmanager
def _counted_construction(max_elements: int) -> Iterator[None]:
    """Count torch's modules and elements during construction; refuse as soon as they are too many."""
    modules = elements = 0

    def count_module(*_: object) -> None:
        nonlocal modules
        modules += 1
        if modules > MAX_MODULES:
            raise refused(f"config.json describes a model of more than {MAX_MODULES} modules")

    def count_elements(_: object, name: str, tensor: torch.Tensor | None) -> None:
        nonlocal elements
        elements += tensor.numel() if tensor is not None else 0
        if elements > max_elements:
            raise refused("config.json describes a much larger model than the weights contain")

    hooks = [
        torch_modules.register_module_module_registration_hook(count_module),
        torch_modules.register_module_parameter_registration_hook(count_elements),
        torch_modules.register_module_buffer_registration_hook(count_elements),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
