"""Merges a LoRA adapter of the peft library into its base: W + B @ A * scale, written as a folder.

Both must be local folders with safetensors weights; peft itself is not needed. Variants other than plain
LoRA are refused. It does not know what is built from the result.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from model_build.configuration import Adapter, Module, WeightsIndex
from model_build.folder import check_folder, fields_of, read_json, read_value, refused, refusing
from model_build.formats import ADAPTER, no_weights
from model_build.weights import INDEX, WEIGHTS, count_elements
from shared.engines.memory import usable_memory
from shared.errors import printable

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_CONFIGURATIONS = ("*.json", "*.txt", "*.model", "*.jinja")
_PART = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.default)?(?:\.weight)?")
_PLAIN_PATTERN = re.compile(r"[\w.]+")
# These initialisations change the base's weights, and the adapter's file does not have the change.
_CHANGING_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Each of these combines A and B in another way, or changes more than matrices.
_VARIANTS = ("use_dora", "lora_bias", "use_qalora", "layer_replication", "target_parameters")

_Tensors = dict[str, torch.Tensor]


def merge_adapter(folder: Path, out: Path) -> Path:
    """`folder`; or, if it is an adapter of a local base, the new folder `out` with both merged.

    Raises InvalidInput (field "model") for an adapter that is not plain LoRA or does not fit its base.
    """
    place = _transformer_of(folder)
    stated = read_json(place / ADAPTER) if place.is_dir() else None
    if stated is None:
        return folder
    adapter = fields_of(stated, Adapter, ADAPTER)
    base = _local(adapter.base_model_name_or_path)
    if base is None:
        return folder  # the reader of the folder refuses it and names its base
    _check_plain(adapter, stated)
    check_folder(base, usable_memory())
    base_place = _transformer_of(base)
    if (base_place / ADAPTER).exists():
        raise refused("the adapter's base is an adapter itself: merge that one first")
    count_elements(base_place)
    if not (place / ADAPTER_WEIGHTS).is_file():
        raise no_weights(place, ADAPTER_WEIGHTS)
    with refusing("the adapter's weights cannot be read"):
        changes = load_file(place / ADAPTER_WEIGHTS)
    weights = _base_weights(base_place)
    _merge(weights, changes, adapter)
    whole = folder if (folder / "modules.json").is_file() else base
    merged = out / _transformer_of(whole).relative_to(whole)
    _copy(whole, out)
    _copy_files(base_place.iterdir() if whole is folder else place.iterdir(), merged, whole is base)
    save_file(weights, merged / WEIGHTS, {"format": "pt"})
    return out


def _local(name: str | None) -> Path | None:
    try:
        return Path(name).resolve() if name and Path(name).is_dir() else None
    except (OSError, ValueError):
        return None


def _transformer_of(folder: Path) -> Path:
    """The folder of the model's first module, which has the transformer's weights."""
    listed = read_value(folder / "modules.json")
    if listed is None:
        return folder
    modules = fields_of(listed, list[Module], "modules.json")
    where = Path(modules[0].path if modules else "")
    return folder if where.is_absolute() or ".." in where.parts or "\0" in str(where) else folder / where


def _check_plain(adapter: Adapter, stated: Mapping[str, Any]) -> None:
    start = str(stated.get("init_lora_weights", "")).lower()
    odd = [name for name in _VARIANTS if stated.get(name)]
    if (adapter.peft_type or "").upper() != "LORA":
        odd.append(f"peft_type {printable(adapter.peft_type or 'none stated')}")
    if start.startswith(_CHANGING_STARTS):
        odd.append(f"init_lora_weights {printable(start)}")
    odd += [name for name in adapter.alpha_pattern if not _PLAIN_PATTERN.fullmatch(name)]
    if odd:
        raise refused(
            f"the adapter is not plain LoRA ({printable(', '.join(odd))}): merge it with peft "
            "(merge_and_unload(), then save_pretrained()), and build the result"
        )


def _base_weights(folder: Path) -> _Tensors:
    if (folder / WEIGHTS).is_file():
        return load_file(folder / WEIGHTS)
    shards = set(fields_of(read_json(folder / INDEX), WeightsIndex, INDEX).weight_map.values())
    return {name: each for shard in sorted(shards) for name, each in load_file(folder / shard).items()}


@dataclass(slots=True)
class _Pair:
    """A: (r, in), B: (out, r). An embedding's product is (width, tokens): its weight transposed."""

    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    is_embedding: bool = False


def _merge(weights: _Tensors, changes: _Tensors, adapter: Adapter) -> None:
    """Add the adapter's changes to `weights` in place."""
    pairs: dict[str, _Pair] = {}
    for key, tensor in changes.items():
        path = key.removeprefix("base_model.model.")
        for wrapper in (".modules_to_save.", ".base_layer."):
            path = path.replace(wrapper, ".")
        if part := _PART.fullmatch(path):
            pair = pairs.setdefault(part[1], _Pair(is_embedding="embedding" in part[2]))
            setattr(pair, part[2][-1].lower(), tensor.to(torch.float32))
        elif "lora_" in path:
            raise refused(f"the adapter has {printable(key)}, which is not plain LoRA")
        else:  # a module that the adapter stores completely, such as a classifier
            weights[_name_in(weights, path) or path] = tensor
    if not pairs:
        raise refused(f"{ADAPTER_WEIGHTS} has no lora_A and lora_B")
    for path, pair in pairs.items():
        name = _name_in(weights, f"{path}.weight")
        if name is None:
            raise refused(f"the adapter changes {printable(path)}, which its base does not have")
        weights[name] = _merged(weights[name], pair, _scale(adapter, path, pair), adapter, path)


def _merged(
    weight: torch.Tensor, pair: _Pair, scale: float, adapter: Adapter, path: str
) -> torch.Tensor:
    a, b = pair.a, pair.b
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise refused(f"the adapter's matrices of {printable(path)} do not fit one another")
    change = b @ a * scale
    if pair.is_embedding or adapter.fan_in_fan_out:
        change = change.T
    if change.shape != weight.shape:
        raise refused(f"the adapter's {printable(path)} does not fit its base's: is it another model?")
    return (weight.to(torch.float32) + change).contiguous()


def _scale(adapter: Adapter, path: str, pair: _Pair) -> float:
    alpha = next(
        (
            each
            for name, each in adapter.alpha_pattern.items()
            if path == name or path.endswith(f".{name}")
        ),
        adapter.lora_alpha,
    )
    rank = max(1, len(pair.a) if pair.a is not None else 1)
    return alpha / (math.sqrt(rank) if adapter.use_rslora else rank)


def _name_in(weights: _Tensors, path: str) -> str | None:
    """The base's name of `path`; one of the two may be prefixed with the model's name."""
    if path in weights:
        return path
    found = [name for name in weights if name.endswith(f".{path}") or path.endswith(f".{name}")]
    return found[0] if len(found) == 1 else None


def _copy(folder: Path, out: Path) -> None:
    """Copy everything except the transformer's weights, which are written separately."""
    transformer = _transformer_of(folder)
    skipped = {ADAPTER, ADAPTER_WEIGHTS}

    def ignored(parent: str, names: list[str]) -> set[str]:
        weights = {name for name in names if name.endswith(".safetensors") or name == INDEX}
        others = {name for name in names if Path(name).suffix in (".bin", ".pt", ".py")}
        return (weights if Path(parent) == transformer else set()) | others | skipped

    with refusing("the adapter's folder cannot be copied"):
        shutil.copytree(folder, out, ignore=ignored, dirs_exist_ok=True)


def _copy_files(files: Iterable[Path], out: Path, overwrite: bool) -> None:
    """Copy configuration and tokenizer files to `out`; existing files are kept unless `overwrite`."""
    for path in files:
        known = any(path.match(pattern) for pattern in _CONFIGURATIONS)
        known = known and path.name not in (ADAPTER, INDEX) and path.is_file()
        if known and (overwrite or not (out / path.name).exists()):
            shutil.copyfile(path, out / path.name)
