"""Reads models whose config.json names custom code, where transformers has the same architecture.

config.json is rewritten for transformers' class; the custom code is never run. It does not know weights:
transformers renames them, and tests compare names and results with the published code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_build.folder import read_json, refused
from shared.errors import printable


@dataclass(frozen=True, slots=True)
class Native:
    """Published custom code for which transformers has an equivalent class.

    repository: the hub repository that auto_map may name; it may also name code beside the weights.
    classes: values that auto_map may have. model_types: of the published configuration. native_type:
    transformers' model type. architectures: published class -> transformers' class. renamed: published
    field -> transformers' field. only: field -> values for which the classes are equivalent; they are
    also equivalent if the field is null or absent.
    """

    repository: str
    classes: frozenset[str]
    model_types: frozenset[str]
    native_type: str
    architectures: Mapping[str, str]
    renamed: Mapping[str, str]
    only: Mapping[str, tuple[Any, ...]]


_NOMIC = Native(
    repository="nomic-ai/nomic-bert-2048",
    classes=frozenset(
        {
            "configuration_hf_nomic_bert.NomicBertConfig",
            "modeling_hf_nomic_bert.NomicBertModel",
            "modeling_hf_nomic_bert.NomicBertForPreTraining",
            "modeling_hf_nomic_bert.NomicBertForSequenceClassification",
        }
    ),
    model_types=frozenset({"nomic_bert"}),
    native_type="nomic_bert",
    architectures={
        "NomicBertModel": "NomicBertModel",
        "NomicBertForPreTraining": "NomicBertForMaskedLM",
    },
    renamed={
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "layer_norm_epsilon": "layer_norm_eps",
        "rotary_emb_base": "rope_theta",
        "vocab_size": "vocab_size",
        "type_vocab_size": "type_vocab_size",
        "pad_token_id": "pad_token_id",
        "matryoshka_dimensions": "matryoshka_dimensions",
    },
    only={
        "activation_function": ("swiglu",),
        "causal": (False,),
        "mlp_fc1_bias": (False,),
        "mlp_fc2_bias": (False,),
        "moe_every_n_layers": (0,),
        "num_experts": (0,),
        "parallel_block": (False,),
        "prenorm": (False,),
        "qkv_proj_bias": (False,),
        "rotary_emb_fraction": (1.0,),
        "rotary_emb_interleaved": (False,),
        "rotary_emb_scale_base": (),
        "rotary_scaling_factor": (),
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (True,),
        "use_rms_norm": (False,),
    },
)

_SAME = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
    "layer_norm_eps hidden_act vocab_size type_vocab_size pad_token_id rope_theta matryoshka_dimensions"
)
_GTE_HEADS = ("Model", "ForMaskedLM", "ForTokenClassification")
_GTE_CLASSES = (
    *_GTE_HEADS,
    "ForMultipleChoice",
    "ForQuestionAnswering",
    "ForSequenceClassification",
)


def _gte(repository: str, config: str, code: str, prefix: str, model_type: str) -> Native:
    return Native(
        repository=repository,
        classes=frozenset(
            {f"{config}.{prefix}Config", *(f"{code}.{prefix}{head}" for head in _GTE_CLASSES)}
        ),
        model_types=frozenset({model_type}),
        native_type="gte",
        architectures={f"{prefix}{head}": f"Gte{head}" for head in _GTE_HEADS},
        renamed={name: name for name in _SAME.split()},
        only={
            "layer_norm_type": ("layer_norm",),
            "logn_attention_clip1": (False,),
            "logn_attention_scale": (False,),
            "pack_qkv": (True,),
            "position_embedding_type": ("rope",),
        },
    )


NATIVES = (
    # nomic-embed-text-v1 and v1.5, snowflake-arctic-embed-m-long
    _NOMIC,
    # gte-multilingual-base, gte-base-en-v1.5, stella_en_400M_v5
    _gte("Alibaba-NLP/new-impl", "configuration", "modeling", "New", "new"),
    # snowflake-arctic-embed-m-v2.0
    _gte(
        "Snowflake/snowflake-arctic-embed-m-v2.0",
        "configuration_hf_alibaba_nlp_gte",
        "modeling_hf_alibaba_nlp_gte",
        "Gte",
        "gte",
    ),
)

# Part of an auto_map -> hub repository of the same model in transformers' own form.
_ELSEWHERE = {"xlm-roberta-flash-implementation": "jinaai/jina-embeddings-v3-hf"}


def with_native_code(folder: Path, scratch: Path) -> Path:
    """`folder`; or, if its config.json names code in NATIVES, a new folder `scratch` with links to its
    files and a rewritten config.json.

    Raises InvalidInput (field "model") for other code, and for settings that transformers' own class
    does not have.
    """
    raw = read_json(folder / "config.json")
    if raw is None or "auto_map" not in raw:
        return folder
    translated = native_config(raw)
    scratch.mkdir()
    for path in folder.iterdir():
        if path.name != "config.json":
            (scratch / path.name).symlink_to(path.resolve())
    (scratch / "config.json").write_text(json.dumps(translated), "utf-8")
    return scratch


def native_config(raw: dict[str, Any]) -> dict[str, Any]:
    """A published config.json with auto_map, rewritten for transformers' class. Raises InvalidInput."""
    native = _native_of(raw)
    for name, right in native.only.items():
        value = raw.get(name)
        if value is not None and value not in right:
            raise refused(
                f"config.json has {name} {printable(json.dumps(value))}, which transformers' own "
                f"{native.native_type} does not have, and the model's own code is never run"
            )
    architecture = native.architectures[raw["architectures"][0]]
    config: dict[str, Any] = {"model_type": native.native_type, "architectures": [architecture]}
    for theirs, ours in native.renamed.items():
        if raw.get(theirs) is not None:
            config[ours] = raw[theirs]
    if (scaling := raw.get("rope_scaling")) is not None:
        config["rope_parameters"] = _rope(scaling, config)
        config.pop("rope_theta", None)
    return config


def _native_of(raw: dict[str, Any]) -> Native:
    named = raw["auto_map"]
    values = list(named.values()) if isinstance(named, dict) else []
    if values and all(isinstance(value, str) for value in values):
        architectures = raw.get("architectures")
        first = architectures[0] if isinstance(architectures, list) and architectures else None
        for native in NATIVES:
            if (
                raw.get("model_type") in native.model_types
                and all(_allows(native, value) for value in values)
                and first in native.architectures
            ):
                return native
    elsewhere = next((there for part, there in _ELSEWHERE.items() if part in json.dumps(named)), None)
    raise refused(
        "the model needs its own code (auto_map), which this builder never runs, and which is not known "
        "to be equal to an architecture of transformers'"
        + (f"; {elsewhere} has the same model in transformers' own form" if elsewhere else "")
    )


def _allows(native: Native, value: str) -> bool:
    repository, _, name = value.rpartition("--")
    return name in native.classes and repository in ("", native.repository)


def _rope(scaling: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The published code's fixed NTK scaling, expressed as transformers' linear scaling of another base.

    The frequencies are (base * factor) ** (-2 i / d) / factor ** (2 / d), for a head of d dimensions.
    """
    plain = isinstance(scaling, dict) and set(scaling) == {"type", "factor"}
    if not plain or scaling["type"] != "ntk" or not isinstance(scaling["factor"], int | float):
        raise refused("config.json has a rope_scaling that is not of type ntk, with a factor alone")
    factor, theta = scaling["factor"], config.get("rope_theta", 10_000.0)
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not isinstance(width, int) or not isinstance(heads, int) or not 1 <= heads <= width:
        raise refused("config.json needs hidden_size, num_attention_heads, both numbers")
    if not 1 <= factor <= 1_000 or not isinstance(theta, int | float):
        raise refused("config.json needs a rope_theta, and a rope_scaling with a factor of 1 to 1000")
    return {
        "rope_type": "linear",
        "rope_theta": float(theta * factor),
        "factor": float(factor ** (2 / (width // heads))),
    }
