"""Reads a sentence-transformers or transformers folder: task, tokenizer, limits and layers.

It does not know graphs, quantisation or the model store.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model_build.configuration import (
    Config,
    DenseConfig,
    Heads,
    Module,
    SentenceBert,
    SentenceTransformers,
    Width,
)
from model_build.configuration import Pooling as PoolingConfig
from model_build.folder import fields_of, read_json, read_value, refused, refusing
from model_build.formats import check_no_adapter, no_model, no_weights
from model_build.purpose import check_architecture, check_kind, pooling_of_plain
from model_build.source_tokenizer import pad_token_id, read_tokenizer
from model_build.weights import check_described, check_numbers, count_elements, read_shapes
from shared.cards import Task
from shared.errors import InvalidInput
from shared.models.manifest import MAX_DIMENSIONS, MAX_NAMES, MAX_TOKENS
from shared.vectors import Activation, Pooling

_POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
    "weightedmean": "weighted_mean",
}
_LEGACY_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: dict[str, Activation] = {"Identity": "identity", "Tanh": "tanh", "ReLU": "relu"}
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
# Their position ids start after the padding id, so the positions before it are unused.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert"}


@dataclass(frozen=True, slots=True)
class SourceDense:
    """weight: (D_out, D_in) float32. bias: (D_out,) float32 or None."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    activation: Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """The description of a sentence-transformers or transformers folder.

    folder: holds config.json and the transformer's safetensors.
    tokenizer_json: the text of tokenizer.json, converted if the folder has only a slow tokenizer.
    max_tokens: special tokens included. dimensions: of the vector after pooling and Dense layers; of a
        cross-encoder, the number of its labels.
    pooling: None for a cross-encoder. labels: of a cross-encoder, in the order of its logits.
    """

    folder: Path
    task: Task
    architecture: str
    model_type: str
    num_heads: int
    hidden_size: int
    tokenizer_json: str
    pad_token_id: int
    max_tokens: int
    dimensions: int
    pooling: Pooling | None
    labels: tuple[str, ...]
    normalize: bool
    dense: tuple[SourceDense, ...]
    prompts: dict[str, str]
    default_prompt: str | None
    matryoshka_dimensions: tuple[int, ...]


def inspect_source(folder: Path, pooling: Pooling | None = None) -> SourceModel:
    """Read `folder`. pooling: of a folder that states none.

    Raises InvalidInput (field "model" or "pooling") for what this builder does not support, and
    InvalidArtefact if a Dense layer has NaN or infinite numbers.
    """
    check_no_adapter(folder)
    check_kind(folder, _sentence_transformers(folder).model_type)
    modules = _modules(folder)
    transformer = modules[0][1]
    check_no_adapter(transformer)
    raw = read_json(transformer / "config.json")
    if raw is None:
        raise no_model(transformer)
    stated = fields_of(raw, Config, "config.json")
    config = _config(transformer, raw)
    check_architecture(stated, raw, config)
    held = count_elements(transformer)
    tokenizer_json, tokenizer_settings = read_tokenizer(transformer)
    architecture = (stated.architectures or [type(config).__name__])[0]
    hidden_size = int(config.hidden_size)
    is_cross_encoder = _is_cross_encoder(folder, modules, architecture)
    if pooling is not None and (is_cross_encoder or len(modules) > 1):
        what = "a cross-encoder pools nothing" if is_cross_encoder else "modules.json states the pooling"
        raise InvalidInput(f"{what}: leave --pooling out", field="pooling")
    if is_cross_encoder:
        layers = _cross_encoder(folder, config)
    else:
        if len(modules) == 1:
            pooling = pooling_of_plain(folder, architecture, pooling)
        layers = _embedding_model(folder, stated, modules, hidden_size, pooling)
    check_described(config, layers["task"], held)
    return SourceModel(
        folder=transformer,
        architecture=architecture,
        model_type=config.model_type,
        num_heads=int(config.num_attention_heads),
        hidden_size=hidden_size,
        tokenizer_json=tokenizer_json,
        pad_token_id=pad_token_id(config, tokenizer_json, tokenizer_settings),
        max_tokens=_max_tokens(transformer, config, tokenizer_settings.model_max_length),
        **layers,
    )


def _is_cross_encoder(folder: Path, modules: list[tuple[str, Path]], architecture: str) -> bool:
    """Whether it is a classifier alone. One before a Pooling has lost its head."""
    if len(modules) > 1:
        return False
    if architecture.endswith("ForSequenceClassification"):
        return True
    if (folder / "modules.json").is_file():
        raise refused(f"the only module is a Transformer, but {architecture} is not a cross-encoder")
    return False


def _cross_encoder(folder: Path, config: Any) -> dict[str, Any]:
    """The activation is ignored: the server applies sigmoid or softmax, or returns logits."""
    prompts, default_prompt = _prompts(folder)
    if default_prompt is not None and prompts[default_prompt]:
        raise refused(
            "the cross-encoder prepends a prompt to its texts, which the server does not support"
        )
    labels = tuple(str(label) for _, label in sorted(config.id2label.items()))
    if len(labels) > MAX_NAMES:
        raise refused(f"the cross-encoder has {len(labels)} labels; at most {MAX_NAMES} are served")
    return {
        "task": "cross-encoder",
        "dimensions": len(labels),
        "pooling": None,
        "labels": labels,
        "normalize": False,
        "dense": (),
        "prompts": {},
        "default_prompt": None,
        "matryoshka_dimensions": (),
    }


def _embedding_model(
    folder: Path,
    stated: Config,
    modules: list[tuple[str, Path]],
    hidden_size: int,
    pooling: Pooling | None,
) -> dict[str, Any]:
    """pooling: of a folder without modules.json."""
    dense: list[SourceDense] = []
    for kind, path in modules[1:]:
        if kind == "Pooling":
            pooling = _pooling(path)
        elif kind == "Dense":
            width = dense[-1].weight.shape[0] if dense else hidden_size
            dense.append(_dense(path, width))
    prompts, default_prompt = _prompts(folder)
    return {
        "task": "embedding",
        "dimensions": dense[-1].weight.shape[0] if dense else hidden_size,
        "pooling": pooling,
        "labels": (),
        "normalize": modules[-1][0] == "Normalize",
        "dense": tuple(dense),
        "prompts": prompts,
        "default_prompt": default_prompt,
        "matryoshka_dimensions": _matryoshka(folder, stated),
    }


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module, in order; a plain transformers folder is one Transformer."""
    listed = read_value(folder / "modules.json")
    if listed is None:
        return [("Transformer", folder)]
    modules = []
    for module in fields_of(listed, list[Module], "modules.json"):
        package, _, name = module.type.rpartition(".")
        if package.split(".")[0] != "sentence_transformers" or name not in _MODULES:
            raise refused(f"the model has a {name} module; this builder reads {', '.join(_MODULES)}")
        where = Path(module.path)
        if where.is_absolute() or ".." in where.parts or "\0" in module.path:
            raise refused("modules.json names a folder outside the model")
        # A Normalize has no settings, and git keeps no empty folder.
        if name in ("Pooling", "Dense") and not (folder / where / "config.json").is_file():
            raise refused(f"there is no {where / 'config.json'}, which the {name} of modules.json needs")
        modules.append((name, folder / where))
    order = "".join(name[0] for name, _ in modules)  # T, P, D, N
    if not re.fullmatch("T(PD*N?)?", order):
        raise refused("the modules are not Transformer, Pooling, any Dense, at most one Normalize")
    return modules


def _config(folder: Path, raw: dict[str, Any]) -> Any:
    """The transformers configuration, of an architecture that transformers itself implements."""
    if "auto_map" in raw:
        raise refused("the model needs its own code (auto_map), which this builder never runs")
    if raw.get("quantization_config") or raw.get("transformers_weights"):
        raise refused(
            "config.json names quantised weights, or files other than model.safetensors "
            "(quantization_config, transformers_weights): this builder supports neither"
        )
    kind = raw.get("model_type") or "none stated"
    wrong = (
        f"config.json is not valid for {kind}"
        if kind in CONFIG_MAPPING
        else f"unknown architecture: {kind}"
    )
    with refusing(wrong):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        # Absent in architectures that are not text encoders.
        msgspec.convert(config.hidden_size, Width)
        msgspec.convert(config.num_attention_heads, Heads)
    if config.is_encoder_decoder:
        raise refused(f"{config.model_type} is an encoder-decoder; this builder supports encoders")
    return config


def _max_tokens(folder: Path, config: Any, model_max_length: float | None) -> int:
    """The configured maximum length, bounded by the position embeddings.

    As in sentence-transformers 6, for cross-encoders too: `max_seq_length`, else the tokenizer's
    `model_max_length`. `max_length` in tokenizer_config.json and the truncation inside tokenizer.json
    are ignored: they record how the model was trained or last called.
    """
    limits = []
    if positions := getattr(config, "max_position_embeddings", None):
        limits.append(int(positions) - _unused_positions(config))
    name = "sentence_bert_config.json"
    stated = fields_of(read_json(folder / name) or {}, SentenceBert, name).max_seq_length
    # Unset, model_max_length is written as 10**30.
    limits.append(int(min(stated or model_max_length or 512, 10**30)))
    if not 1 <= min(limits) <= MAX_TOKENS:
        raise refused(f"the model reads {min(limits)} tokens by its files: set max_seq_length in {name}")
    return min(limits)


def _unused_positions(config: Any) -> int:
    """Number of position embeddings before the first token's."""
    if config.model_type == "mpnet":
        return 2  # its padding is 1 for transformers, whatever config.json says
    if config.model_type not in _OFFSET_POSITIONS:
        return 0
    if config.pad_token_id is None:
        raise refused(
            f"config.json has no pad_token_id, where the positions of a {config.model_type} start"
        )
    return int(config.pad_token_id) + 1


def _pooling(folder: Path) -> Pooling:
    """The pooling, from `pooling_mode` or the booleans of older versions; "mean" by default."""
    config = fields_of(read_json(folder / "config.json") or {}, PoolingConfig, "Pooling's config.json")
    if config.include_prompt is False:
        raise refused("the model excludes its prompt from pooling, which the server does not support")
    modes = config.pooling_mode
    if modes is None:
        modes = [mode for key, mode in _LEGACY_POOLINGS.items() if getattr(config, key)] or ["mean"]
    elif isinstance(modes, str):
        modes = [modes]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise refused(f"pooling {' + '.join(map(str, modes))} is not one of {', '.join(_POOLINGS)}")
    return _POOLINGS[modes[0]]


def _dense(folder: Path, width: int) -> SourceDense:
    """Read a Dense layer. width: of its input vectors."""
    config = fields_of(read_json(folder / "config.json") or {}, DenseConfig, "Dense's config.json")
    name = config.activation_function.rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise refused(f"a Dense layer has activation {name}, not one of {', '.join(_ACTIVATIONS)}")
    names = {
        each or "sentence_embedding" for each in (config.module_input_name, config.module_output_name)
    }
    if config.use_residual or names != {"sentence_embedding"}:
        raise refused(
            "a Dense layer has a residual, or an input or output other than sentence_embedding"
        )
    if not (folder / "model.safetensors").is_file():
        raise no_weights(folder, "model.safetensors")
    shapes = read_shapes(folder / "model.safetensors")
    weight, bias = shapes.get("linear.weight"), shapes.get("linear.bias")
    if weight is None:
        raise refused("a Dense layer has no linear.weight")
    out = weight[0] if weight else 0
    if weight != [out, width] or not 1 <= out <= MAX_DIMENSIONS or bias not in (None, [out]):
        raise refused(f"a Dense layer's weights do not fit vectors of {width} dimensions")
    with refusing("a Dense layer's weights cannot be read"):  # numpy has no bfloat16
        tensors = {
            key: np.asarray(value, np.float32)
            for key, value in load_file(folder / "model.safetensors").items()
        }
    check_numbers((f"{key} of a Dense layer", torch.from_numpy(each)) for key, each in tensors.items())
    return SourceDense(tensors["linear.weight"], tensors.get("linear.bias"), _ACTIVATIONS[name])


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    config = _sentence_transformers(folder)
    prompts = {name: text or "" for name, text in (config.prompts or {}).items()}
    default = config.default_prompt_name
    if default is not None and default not in prompts:
        raise refused("default_prompt_name is not one of the prompts")
    return prompts, default


def _matryoshka(folder: Path, config: Config) -> tuple[int, ...]:
    """The Matryoshka dimensions that a configuration states."""
    for holder in (_sentence_transformers(folder), config):
        if stated := holder.matryoshka_dimensions or holder.matryoshka_dims:
            return tuple(sorted(stated))
    return ()


def _sentence_transformers(folder: Path) -> SentenceTransformers:
    name = "config_sentence_transformers.json"
    return fields_of(read_json(folder / name) or {}, SentenceTransformers, name)
