"""Reads a published model's folder: what it is, its tokenizer, its limits and its layers.

It does not know graphs, numbers' formats or the model store.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import AutoConfig

from model_build.folder import check_weights, read_json, refused
from model_build.source_tokenizer import pad_token_id, read_tokenizer
from shared.manifest import Activation, Pooling, Task

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
# Their position ids start after the padding id, so that many positions are never used.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"}


@dataclass(frozen=True, slots=True)
class SourceDense:
    """weight: (D_out, D_in) float32. bias: (D_out,) float32 or None."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    activation: Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """What a sentence-transformers or transformers folder says about itself.

    folder: holds config.json and the transformer's safetensors.
    tokenizer_json: the text of tokenizer.json, converted if the folder had only a slow tokenizer.
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


def inspect_source(folder: Path) -> SourceModel:
    """Read `folder`. Raises InvalidInput (field "model") that says what this builder cannot serve."""
    modules = _modules(folder)
    transformer = modules[0][1]
    raw = read_json(transformer / "config.json")
    if raw is None:
        raise refused("the model is not a folder with a config.json")
    config = _config(transformer, raw)
    check_weights(transformer, "model.safetensors", "model.safetensors.index.json")
    tokenizer_json, tokenizer_settings = read_tokenizer(transformer)
    architecture = (raw.get("architectures") or [type(config).__name__])[0]
    hidden_size = int(config.hidden_size)
    layers = (
        _cross_encoder(folder, config)
        if _is_cross_encoder(folder, modules, architecture)
        else _embedding_model(folder, raw, modules, hidden_size)
    )
    return SourceModel(
        folder=transformer,
        architecture=architecture,
        model_type=config.model_type,
        num_heads=int(config.num_attention_heads),
        hidden_size=hidden_size,
        tokenizer_json=tokenizer_json,
        pad_token_id=pad_token_id(config, tokenizer_json, tokenizer_settings),
        max_tokens=_max_tokens(transformer, config, tokenizer_settings),
        **layers,
    )


def _is_cross_encoder(folder: Path, modules: list[tuple[str, Path]], architecture: str) -> bool:
    """A classifier with nothing after it. Before a Pooling, its head was thrown away."""
    if len(modules) > 1:
        return False
    if architecture.endswith("ForSequenceClassification"):
        return True
    if (folder / "modules.json").is_file():
        raise refused(f"the only module is a Transformer, but {architecture} is no cross-encoder")
    return False


def _cross_encoder(folder: Path, config: Any) -> dict[str, Any]:
    """Its activation is not read: the server answers with sigmoid or softmax, or with logits."""
    prompts, default_prompt = _prompts(folder)
    if default_prompt is not None and prompts[default_prompt]:
        raise refused("the cross-encoder puts a prompt before its texts, which the server does not")
    labels = tuple(str(label) for _, label in sorted(config.id2label.items()))
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
    folder: Path, raw: dict[str, Any], modules: list[tuple[str, Path]], hidden_size: int
) -> dict[str, Any]:
    pooling: Pooling = "mean"
    dense: list[SourceDense] = []
    for kind, path in modules[1:]:
        if kind == "Pooling":
            pooling = _pooling(path)
        elif kind == "Dense":
            dense.append(_dense(path))
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
        "matryoshka_dimensions": _matryoshka(folder, raw),
    }


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module, in order; a plain transformers folder is one Transformer."""
    path = folder / "modules.json"
    if not path.is_file():
        return [("Transformer", folder)]
    try:
        listed = [(str(m["type"]), str(m["path"])) for m in json.loads(path.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise refused("modules.json is not a list of modules") from error
    modules = []
    for kind, where in listed:
        package, _, name = kind.rpartition(".")
        if package.split(".")[0] != "sentence_transformers" or name not in _MODULES:
            raise refused(f"the model has a {name} module; this builder reads {', '.join(_MODULES)}")
        if Path(where).is_absolute() or ".." in Path(where).parts:
            raise refused("modules.json names a folder outside the model")
        modules.append((name, folder / where))
    order = "".join(name[0] for name, _ in modules)  # T, P, D, N
    if not re.fullmatch("T(PD*N?)?", order):
        raise refused("the modules are not Transformer, Pooling, any Dense, at most one Normalize")
    return modules


def _config(folder: Path, raw: dict[str, Any]) -> Any:
    """The transformers configuration of a model whose code is in transformers itself."""
    if "auto_map" in raw:
        raise refused("the model brings its own code (auto_map), which this builder never runs")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        # Absent on architectures that are no text encoders.
        _ = config.hidden_size, config.num_attention_heads
    except Exception as error:  # transformers raises KeyError, ValueError, OSError and its own
        raise refused(f"unknown architecture: {raw.get('model_type', 'none stated')}") from error
    if config.is_encoder_decoder:
        raise refused(f"{config.model_type} is an encoder-decoder; this builder reads encoders")
    return config


def _max_tokens(folder: Path, config: Any, settings: dict[str, Any]) -> int:
    """What the model was told to read, never more than it has positions for.

    As sentence-transformers 6 does, for cross-encoders too: `max_seq_length`, else the tokenizer's
    `model_max_length`. It ignores `max_length` in tokenizer_config.json and the truncation inside
    tokenizer.json, which tell how the model was trained or last called and not what it can read.
    """
    limits = []
    if positions := getattr(config, "max_position_embeddings", None):
        offset = config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0
        limits.append(int(positions) - offset)
    stated = (read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    # Unset, model_max_length is written as 10**30.
    limits.append(int(stated or settings.get("model_max_length") or 512))
    return min(limits)


def _pooling(folder: Path) -> Pooling:
    """From `pooling_mode`, or from the booleans of older versions; "mean" if neither is there."""
    config = read_json(folder / "config.json") or {}
    if config.get("include_prompt") is False:
        raise refused("the model pools without its prompt, which the server cannot")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY_POOLINGS.items() if config.get(key)] or ["mean"]
    elif isinstance(modes, str):
        modes = [modes]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise refused(f"pooling {' + '.join(map(str, modes))} is not one of {', '.join(_POOLINGS)}")
    return _POOLINGS[modes[0]]


def _dense(folder: Path) -> SourceDense:
    config = read_json(folder / "config.json") or {}
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise refused(f"a Dense layer has activation {name}, not one of {', '.join(_ACTIVATIONS)}")
    names = {
        config.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")
    }
    if config.get("use_residual") or names != {"sentence_embedding"}:
        raise refused("a Dense layer has a residual, or works on something else than the sentence")
    check_weights(folder, "model.safetensors")
    tensors = {
        key: np.asarray(value, np.float32)
        for key, value in load_file(folder / "model.safetensors").items()
    }
    if "linear.weight" not in tensors:
        raise refused("a Dense layer has no linear.weight")
    return SourceDense(tensors["linear.weight"], tensors.get("linear.bias"), _ACTIVATIONS[name])


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    config = read_json(folder / "config_sentence_transformers.json") or {}
    prompts = {str(name): str(text) for name, text in (config.get("prompts") or {}).items()}
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise refused("default_prompt_name is not one of the prompts")
    return prompts, default


def _matryoshka(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """Lengths the vector was trained to be cut to, where a configuration states them."""
    sentence = read_json(folder / "config_sentence_transformers.json") or {}
    for holder in (sentence, config):
        for key in ("matryoshka_dimensions", "matryoshka_dims"):
            if stated := holder.get(key):
                return tuple(sorted(int(size) for size in stated))
    return ()
