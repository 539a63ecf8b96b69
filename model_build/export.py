"""Reads a published model's folder and exports its transformer as an FP32 ONNX graph for the CPU.

It does not know quantisation, evaluation or the model store.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from torch.jit._trace import TracerWarning
from transformers import AutoConfig, AutoModel, AutoTokenizer

from shared.errors import InvalidInput
from shared.manifest import Activation, Pooling

OPSET = 17

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
# Architectures whose attention onnxruntime's BERT optimiser knows. Others run the same graph unfused.
_FUSED_ATTENTION = {"bert", "roberta", "xlm-roberta", "camembert", "distilbert"}
_VOCABULARIES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")


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
    max_tokens: special tokens included. dimensions: of the vector after pooling and Dense layers.
    """

    folder: Path
    architecture: str
    model_type: str
    num_heads: int
    hidden_size: int
    tokenizer_json: str
    pad_token_id: int
    max_tokens: int
    dimensions: int
    pooling: Pooling
    normalize: bool
    dense: tuple[SourceDense, ...]
    prompts: dict[str, str]
    default_prompt: str | None
    matryoshka_dimensions: tuple[int, ...]


def inspect_source(folder: Path) -> SourceModel:
    """Read `folder`. Raises InvalidInput (field "model") that says what this builder cannot serve."""
    modules = _modules(folder)
    transformer = modules[0][1]
    raw = _read_json(transformer / "config.json")
    if raw is None:
        raise _refused("the model is not a folder with a config.json")
    config = _config(transformer, raw)
    _check_weights(transformer, "model.safetensors", "model.safetensors.index.json")
    tokenizer_json, tokenizer_settings = _tokenizer(transformer)
    pooling: Pooling = "mean"
    dense: list[SourceDense] = []
    for kind, path in modules[1:]:
        if kind == "Pooling":
            pooling = _pooling(path)
        elif kind == "Dense":
            dense.append(_dense(path))
    prompts, default_prompt = _prompts(folder)
    hidden_size = int(config.hidden_size)
    return SourceModel(
        folder=transformer,
        architecture=(raw.get("architectures") or [type(config).__name__])[0],
        model_type=config.model_type,
        num_heads=int(config.num_attention_heads),
        hidden_size=hidden_size,
        tokenizer_json=tokenizer_json,
        pad_token_id=_pad_token_id(config, tokenizer_json, tokenizer_settings),
        max_tokens=_max_tokens(transformer, config, tokenizer_settings),
        dimensions=dense[-1].weight.shape[0] if dense else hidden_size,
        pooling=pooling,
        normalize=modules[-1][0] == "Normalize",
        dense=tuple(dense),
        prompts=prompts,
        default_prompt=default_prompt,
        matryoshka_dimensions=_matryoshka(folder, raw),
    )


def export_onnx(source: SourceModel, out: Path) -> None:
    """Write the FP32 graph, attention and GELU fused where known; `optimize_offline` comes after.

    Inputs `input_ids`, `attention_mask` (B, T) int64; output `token_embeddings` (B, T, H) float32.
    Token types are zeros, folded in. Raises InvalidInput if the architecture does not export.
    """
    with tempfile.TemporaryDirectory() as scratch:
        traced = Path(scratch) / "traced.onnx"
        _trace(source, traced)
        _fuse(source, traced, out)
    _fix_output_width(out, source.hidden_size)


def optimize_offline(src: Path, out: Path) -> None:
    """Let ONNX Runtime optimise once, here, and save: the server loads with optimisation off.

    The level is EXTENDED, the last one whose result does not depend on this machine's processor.
    SkipLayerNormalization is left out: on the CPU it is four times slower than Add + LayerNormalization.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 3
    ort.InferenceSession(
        str(src),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion"],
    )


class _TokenEmbeddings(torch.nn.Module):
    """The transformer with the two inputs and the one output that an engine has."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return hidden


@contextmanager
def _third_party_warnings() -> Iterator[None]:
    """Silence what torch and transformers say about tracing, which we choose on purpose.

    The TorchScript exporter is deprecated, but the graphs of its successor are not fused: attention
    would stay a dozen operators. TracerWarnings, and the one on advanced indexing, are about shapes
    that `dynamic_axes` covers; the evaluation compares the result with torch on other shapes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript", DeprecationWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.onnx\.")
        warnings.filterwarnings("ignore", "Exporting aten::index operator", UserWarning)
        yield


def _trace(source: SourceModel, out: Path) -> None:
    with _third_party_warnings():
        # Eager attention: the optimiser recognises no other. use_safetensors: never unpickle.
        model = AutoModel.from_pretrained(
            source.folder,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
        ).eval()
        ids = torch.full((2, 7), source.pad_token_id + 1, dtype=torch.int64)
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0  # a mask of ones alone would be traced away
        axes = {0: "batch", 1: "sequence"}
        names = ("input_ids", "attention_mask", "token_embeddings")
        try:
            torch.onnx.export(
                _TokenEmbeddings(model),
                (ids, mask),
                str(out),
                input_names=list(names[:2]),
                output_names=[names[2]],
                dynamic_axes=dict.fromkeys(names, axes),
                opset_version=OPSET,
                dynamo=False,
            )
        except (RuntimeError, TypeError, AttributeError, ValueError) as error:
            raise _refused(f"the architecture {source.architecture} does not export") from error


def _fuse(source: SourceModel, src: Path, out: Path) -> None:
    options = FusionOptions("bert")
    options.use_multi_head_attention = True
    options.enable_attention = source.model_type in _FUSED_ATTENTION
    # On the CPU these two are slower than the operators they replace.
    options.enable_skip_layer_norm = False
    options.enable_bias_skip_layer_norm = False
    # It would hide the word embedding table from the quantiser.
    options.enable_embed_layer_norm = False
    model = optimize_model(
        str(src),
        model_type="bert",
        num_heads=source.num_heads,
        hidden_size=source.hidden_size,
        optimization_options=options,
        opt_level=0,
    )
    model.save_model_to_file(str(out))


def _fix_output_width(path: Path, width: int) -> None:
    """State the output's last dimension: engines read the vector's width from the graph."""
    model = onnx.load(path)
    dimension = model.graph.output[0].type.tensor_type.shape.dim[2]
    if dimension.dim_value != width:
        dimension.dim_value = width
        onnx.save(model, path)


def _refused(message: str) -> InvalidInput:
    return InvalidInput(message, field="model")


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise _refused(f"{path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise _refused(f"{path.name} is not a JSON object")
    return value


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module, in order; a plain transformers folder is one Transformer."""
    path = folder / "modules.json"
    if not path.is_file():
        return [("Transformer", folder)]
    try:
        listed = [(str(m["type"]), str(m["path"])) for m in json.loads(path.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise _refused("modules.json is not a list of modules") from error
    modules = []
    for kind, where in listed:
        package, _, name = kind.rpartition(".")
        if package.split(".")[0] != "sentence_transformers" or name not in _MODULES:
            raise _refused(f"the model has a {name} module; this builder reads {', '.join(_MODULES)}")
        if Path(where).is_absolute() or ".." in Path(where).parts:
            raise _refused("modules.json names a folder outside the model")
        modules.append((name, folder / where))
    order = "".join(name[0] for name, _ in modules)  # T, P, D, N
    if not re.fullmatch("TPD*N?", order):
        raise _refused("the modules are not Transformer, Pooling, any Dense, at most one Normalize")
    return modules


def _config(folder: Path, raw: dict[str, Any]) -> Any:
    """The transformers configuration of a model whose code is in transformers itself."""
    if "auto_map" in raw:
        raise _refused("the model brings its own code (auto_map), which this builder never runs")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        # Absent on architectures that are no text encoders.
        _ = config.hidden_size, config.num_attention_heads
    except Exception as error:  # transformers raises KeyError, ValueError, OSError and its own
        raise _refused(f"unknown architecture: {raw.get('model_type', 'none stated')}") from error
    if config.is_encoder_decoder:
        raise _refused(f"{config.model_type} is an encoder-decoder; this builder reads encoders")
    return config


def _check_weights(folder: Path, *names: str) -> None:
    """One of `names` must be there. Pickles run code when they are read."""
    if any((folder / name).is_file() for name in names):
        return
    if any(folder.glob("*.bin")):
        raise _refused("the weights are pickles (*.bin) only; this builder reads safetensors")
    raise _refused(f"there is no {names[0]}")


def _tokenizer(folder: Path) -> tuple[str, dict[str, Any]]:
    """The text of tokenizer.json, and tokenizer_config.json."""
    settings = _read_json(folder / "tokenizer_config.json") or {}
    if "auto_map" in settings:
        raise _refused("the tokenizer brings its own code (auto_map), which this builder never runs")
    path = folder / "tokenizer.json"
    if path.is_file():
        text = path.read_text("utf-8")
    elif any((folder / name).is_file() for name in _VOCABULARIES):
        text = _converted_tokenizer(folder)
    else:
        # Without this check transformers would make up a tokenizer of nothing but special tokens.
        raise _refused("there is no tokenizer.json, and no vocabulary to make one from")
    try:
        Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise _refused("tokenizer.json is not a tokenizer this builder reads") from error
    if (_read_json(folder / "sentence_bert_config.json") or {}).get("do_lower_case"):
        text = _lower_casing(text)
    return text, settings


def _converted_tokenizer(folder: Path) -> str:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=False, local_files_only=True
        )
        text: str = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # whatever the slow tokenizer's own library raises
        raise _refused("there is no tokenizer.json, and the slow tokenizer does not convert") from error
    return text


def _lower_casing(text: str) -> str:
    """tokenizer.json that lower-cases first: sentence-transformers does that outside the tokenizer."""
    tokenizer = json.loads(text)
    lowercase = {"type": "Lowercase"}
    own = tokenizer.get("normalizer")
    both = {"type": "Sequence", "normalizers": [lowercase, own]}
    tokenizer["normalizer"] = both if own else lowercase
    return json.dumps(tokenizer, ensure_ascii=False)


def _pad_token_id(config: Any, tokenizer_json: str, settings: dict[str, Any]) -> int:
    """The configuration's, because position ids may skip it; else the tokenizer's; else 0."""
    if getattr(config, "pad_token_id", None) is not None:
        return int(config.pad_token_id)
    token = settings.get("pad_token")
    text = token.get("content") if isinstance(token, dict) else token
    found = Tokenizer.from_str(tokenizer_json).token_to_id(text) if text else None
    return int(found or 0)


def _max_tokens(folder: Path, config: Any, settings: dict[str, Any]) -> int:
    """What the model was told to read, never more than it has positions for."""
    limits = []
    if positions := getattr(config, "max_position_embeddings", None):
        offset = config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0
        limits.append(int(positions) - offset)
    stated = (_read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    # Unset, model_max_length is written as 10**30.
    limits.append(int(stated or settings.get("model_max_length") or 512))
    return min(limits)


def _pooling(folder: Path) -> Pooling:
    """From `pooling_mode`, or from the booleans of older versions; "mean" if neither is there."""
    config = _read_json(folder / "config.json") or {}
    if config.get("include_prompt") is False:
        raise _refused("the model pools without its prompt, which the server cannot")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY_POOLINGS.items() if config.get(key)] or ["mean"]
    elif isinstance(modes, str):
        modes = [modes]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise _refused(f"pooling {' + '.join(map(str, modes))} is not one of {', '.join(_POOLINGS)}")
    return _POOLINGS[modes[0]]


def _dense(folder: Path) -> SourceDense:
    config = _read_json(folder / "config.json") or {}
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise _refused(f"a Dense layer has activation {name}, not one of {', '.join(_ACTIVATIONS)}")
    names = {
        config.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")
    }
    if config.get("use_residual") or names != {"sentence_embedding"}:
        raise _refused("a Dense layer has a residual, or works on something else than the sentence")
    _check_weights(folder, "model.safetensors")
    tensors = {
        key: np.asarray(value, np.float32)
        for key, value in load_file(folder / "model.safetensors").items()
    }
    if "linear.weight" not in tensors:
        raise _refused("a Dense layer has no linear.weight")
    return SourceDense(tensors["linear.weight"], tensors.get("linear.bias"), _ACTIVATIONS[name])


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    config = _read_json(folder / "config_sentence_transformers.json") or {}
    prompts = {str(name): str(text) for name, text in (config.get("prompts") or {}).items()}
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise _refused("default_prompt_name is not one of the prompts")
    return prompts, default


def _matryoshka(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """Lengths the vector was trained to be cut to, where a configuration states them."""
    sentence = _read_json(folder / "config_sentence_transformers.json") or {}
    for holder in (sentence, config):
        for key in ("matryoshka_dimensions", "matryoshka_dims"):
            if stated := holder.get(key):
                return tuple(sorted(int(size) for size in stated))
    return ()
