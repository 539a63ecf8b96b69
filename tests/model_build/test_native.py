"""Models that name code of their own are read by transformers' own classes only where those are equal.

The published code is not here: what it computes is written down once more below, from its published
description, with its own names of fields and weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, silu
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model_build.fp16 import export_fp16
from model_build.native import NATIVES, native_config, with_native_code
from model_build.source import inspect_source
from shared.engines.torch import read_transformer
from shared.errors import InvalidInput
from tests.model_build.command import Run
from tests.tiny_torch import ENCODERS, WORDS, save_tiny, state_pooling

IDS = torch.tensor([[0, 5, 9, 7, 2, 11, 12, 13, 14, 15, 16, 17]])
H, HEADS, INNER, LAYERS, VOCABULARY = 32, 4, 48, 2, len(WORDS)

NOMIC: dict[str, Any] = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "auto_map": {
        "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
        "AutoModelForMaskedLM": "modeling_hf_nomic_bert.NomicBertForPreTraining",
    },
    "activation_function": "swiglu",
    "causal": False,
    "layer_norm_epsilon": 1e-6,
    "max_trained_positions": 20,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "n_embd": H,
    "n_head": HEADS,
    "n_inner": INNER,
    "n_layer": LAYERS,
    "n_positions": 40,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 500,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "type_vocab_size": 2,
    "use_rms_norm": False,
    "vocab_size": VOCABULARY,
}
GTE: dict[str, Any] = {
    "model_type": "new",
    "architectures": ["NewModel", "NewForTokenClassification"],
    "auto_map": {
        "AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
        "AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel",
        "AutoModelForMaskedLM": "Alibaba-NLP/new-impl--modeling.NewForMaskedLM",
    },
    "hidden_act": "gelu",
    "hidden_size": H,
    "intermediate_size": INNER,
    "layer_norm_eps": 1e-6,
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "max_position_embeddings": 40,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "pack_qkv": True,
    "pad_token_id": 1,
    "position_embedding_type": "rope",
    "rope_scaling": {"factor": 8.0, "type": "ntk"},
    "rope_theta": 300,
    "type_vocab_size": 1,
    "vocab_size": VOCABULARY,
}
ARCTIC = GTE | {
    "model_type": "gte",
    "architectures": ["GteModel"],
    "auto_map": {
        "AutoConfig": "configuration_hf_alibaba_nlp_gte.GteConfig",
        "AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel",
    },
}
PLAIN_ROPE = {name: value for name, value in GTE.items() if name != "rope_scaling"} | {
    "type_vocab_size": 0
}


def nomic_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCABULARY, H),
        "embeddings.token_type_embeddings.weight": (2, H),
        "emb_ln.weight": (H,),
        "emb_ln.bias": (H,),
    }
    for n in range(LAYERS):
        layer = f"encoder.layers.{n}"
        shapes |= {
            f"{layer}.attn.Wqkv.weight": (3 * H, H),
            f"{layer}.attn.out_proj.weight": (H, H),
            f"{layer}.mlp.fc11.weight": (INNER, H),
            f"{layer}.mlp.fc12.weight": (INNER, H),
            f"{layer}.mlp.fc2.weight": (H, INNER),
            **{f"{layer}.norm{k}.{part}": (H,) for k in (1, 2) for part in ("weight", "bias")},
        }
    return shapes


def gte_shapes(types: int, prefix: str = "") -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCABULARY, H),
        "embeddings.LayerNorm.weight": (H,),
        "embeddings.LayerNorm.bias": (H,),
    }
    if types:
        shapes["embeddings.token_type_embeddings.weight"] = (types, H)
    for n in range(LAYERS):
        layer = f"encoder.layer.{n}"
        shapes |= {
            f"{layer}.attention.qkv_proj.weight": (3 * H, H),
            f"{layer}.attention.qkv_proj.bias": (3 * H,),
            f"{layer}.attention.o_proj.weight": (H, H),
            f"{layer}.attention.o_proj.bias": (H,),
            f"{layer}.mlp.up_gate_proj.weight": (2 * INNER, H),
            f"{layer}.mlp.down_proj.weight": (H, INNER),
            f"{layer}.mlp.down_proj.bias": (H,),
            **{
                f"{layer}.{k}.{part}": (H,) for k in ("attn_ln", "mlp_ln") for part in ("weight", "bias")
            },
        }
    return {prefix + name: shape for name, shape in shapes.items()}


def frequencies(base: float) -> Tensor:
    half = torch.arange(0, H // HEADS, 2, dtype=torch.float64) / (H // HEADS)
    return torch.tensor(1 / base ** half.numpy(), dtype=torch.float32)


def attend(qkv: Tensor, inverse: Tensor) -> Tensor:
    """(T, 3 H) -> (T, H): full attention, positions by rotation of a head's halves."""
    angles = torch.arange(len(qkv))[:, None] * inverse
    cos, sin = (torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))
    q, k, v = (part.view(-1, HEADS, H // HEADS).transpose(0, 1) for part in qkv.chunk(3, dim=-1))

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    scores = turned(q) @ turned(k).transpose(1, 2) / (H // HEADS) ** 0.5
    mixed: Tensor = (scores.softmax(-1) @ v).transpose(0, 1).reshape(-1, H)
    return mixed


def nomic(config: dict[str, Any], w: dict[str, Tensor]) -> Tensor:
    """(T, H)"""

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, (H,), w[f"{name}.weight"], w[f"{name}.bias"], config["layer_norm_epsilon"])

    x = w["embeddings.word_embeddings.weight"][IDS[0]] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "emb_ln")
    for n in range(LAYERS):
        layer = f"encoder.layers.{n}"
        mixed = attend(x @ w[f"{layer}.attn.Wqkv.weight"].T, frequencies(config["rotary_emb_base"]))
        x = norm(x + mixed @ w[f"{layer}.attn.out_proj.weight"].T, f"{layer}.norm1")
        inner = (x @ w[f"{layer}.mlp.fc11.weight"].T) * silu(x @ w[f"{layer}.mlp.fc12.weight"].T)
        x = norm(x + inner @ w[f"{layer}.mlp.fc2.weight"].T, f"{layer}.norm2")
    return x


def gte(config: dict[str, Any], w: dict[str, Tensor]) -> Tensor:
    """(T, H)"""
    w = {name.removeprefix("new."): value for name, value in w.items()}
    inverse = frequencies(config["rope_theta"])
    if scaling := config.get("rope_scaling"):
        factor = scaling["factor"]
        inverse = frequencies(config["rope_theta"] * factor) / factor ** (2 / (H // HEADS))

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, (H,), w[f"{name}.weight"], w[f"{name}.bias"], config["layer_norm_eps"])

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    x = w["embeddings.word_embeddings.weight"][IDS[0]]
    if config["type_vocab_size"]:
        x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for n in range(LAYERS):
        layer = f"encoder.layer.{n}"
        mixed = attend(linear(x, f"{layer}.attention.qkv_proj"), inverse)
        x = norm(x + linear(mixed, f"{layer}.attention.o_proj"), f"{layer}.attn_ln")
        up, gate = linear(x, f"{layer}.mlp.up_gate_proj").chunk(2, dim=-1)
        x = norm(x + linear(gelu(gate) * up, f"{layer}.mlp.down_proj"), f"{layer}.mlp_ln")
    return x


Published = tuple[dict[str, Any], dict[str, tuple[int, ...]], Callable[..., Tensor]]
PUBLISHED: dict[str, Published] = {
    "nomic-embed-text": (NOMIC, nomic_shapes(), nomic),
    "gte-multilingual": (GTE, gte_shapes(1, "new."), gte),
    "gte-en-v1.5": (PLAIN_ROPE, gte_shapes(0, "new."), gte),
    "arctic-m-v2": (ARCTIC, gte_shapes(1), gte),
}


def publish(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As at the hub, with random weights, a tokenizer and sentence-transformers' files."""
    config, shapes, _ = PUBLISHED[name]
    torch.manual_seed(0)
    weights = {
        each: torch.randn(shape) * 0.3 + (1 if "norm" in each.lower() or "_ln" in each else 0)
        for each, shape in shapes.items()
    }
    state_pooling(save_tiny(folder, *ENCODERS["bert"]))
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return config, weights


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_own_class_is_equal_to_the_published_one(name: str, tmp_path: Path) -> None:
    """By configuration, names of weights, and each token's vector; no weight is left over or missing."""
    config, weights = publish(tmp_path / "model", name)
    folder = with_native_code(tmp_path / "model", tmp_path / "native")
    model, report = AutoModel.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    assert not report["unexpected_keys"]
    assert not [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    with torch.no_grad():
        found = model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state[0]
    torch.testing.assert_close(found, PUBLISHED[name][2](config, weights), atol=1e-4, rtol=1e-4)


def test_such_a_model_is_built(run: Run, tmp_path: Path) -> None:
    """By the command, through the gates."""
    publish(tmp_path / "model", "nomic-embed-text")
    ran = run(tmp_path / "model", "--target", "cpu-fp32")
    assert ran.returncode == 0, ran.stderr


def test_what_the_gpu_gets_says_nothing_of_the_other_code(tmp_path: Path) -> None:
    """Its engine refuses auto_map, and reads the rewritten configuration."""
    config, weights = publish(tmp_path / "model", "gte-multilingual")
    source = inspect_source(with_native_code(tmp_path / "model", tmp_path / "native"))
    (tmp_path / "out").mkdir()
    export_fp16(source, tmp_path / "out")
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()
    model = read_transformer(tmp_path / "out", with_head=False).float().eval()
    with torch.no_grad():
        found = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state[0]
    torch.testing.assert_close(found, gte(config, weights), atol=2e-2, rtol=2e-2)


def test_every_entry_is_proved_and_is_of_transformers() -> None:
    """An entry without a row above would be a claim."""
    configs = [config for config, _, _ in PUBLISHED.values()]
    for native in NATIVES:
        assert native.native_type in CONFIG_MAPPING
        assert any(config["model_type"] in native.model_types for config in configs)


FLASH = "jinaai/xlm-roberta-flash-implementation--configuration_xlm_roberta.XLMRobertaFlashConfig"
NOMIC_CONFIG = NOMIC["auto_map"]["AutoConfig"]
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another repository": (
        NOMIC,
        {"auto_map": {"AutoConfig": "evil/x--configuration_hf_nomic_bert.NomicBertConfig"}},
        "not known to be equal",
    ),
    "another class": (NOMIC, {"auto_map": {"AutoModel": "modeling.Own"}}, "its own code (auto_map)"),
    "one class of another kind": (
        NOMIC,
        {"auto_map": {"AutoConfig": NOMIC_CONFIG, "AutoModel": "modeling.Own"}},
        "its own code (auto_map)",
    ),
    "another model type": (NOMIC, {"model_type": "bert"}, "its own code (auto_map)"),
    "another architecture": (NOMIC, {"architectures": ["NomicVisionModel"]}, "its own code (auto_map)"),
    "no architecture": (NOMIC, {"architectures": None}, "its own code (auto_map)"),
    "an empty auto_map": (NOMIC, {"auto_map": {}}, "its own code (auto_map)"),
    "an auto_map of lists": (
        NOMIC,
        {"auto_map": {"AutoTokenizer": ["x", None]}},
        "its own code (auto_map)",
    ),
    "an auto_map that is a list": (NOMIC, {"auto_map": [NOMIC_CONFIG]}, "its own code (auto_map)"),
    "JinaBERT": (
        NOMIC,
        {
            "model_type": "bert",
            "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--m.JinaBertModel"},
        },
        "its own code (auto_map)",
    ),
    "jina-embeddings-v3": (
        NOMIC,
        {"model_type": "xlm-roberta", "auto_map": {"AutoConfig": FLASH}},
        "jinaai/jina-embeddings-v3-hf has the same model in transformers' own form",
    ),
    "a mixture of experts": (NOMIC, {"num_experts": 8}, "config.json has num_experts 8, which transf"),
    "dynamic scaling": (NOMIC, {"rotary_scaling_factor": 2}, "rotary_scaling_factor 2"),
    "norms before": (NOMIC, {"prenorm": True}, "prenorm true"),
    "another activation": (NOMIC, {"activation_function": "geglu"}, 'activation_function "geglu"'),
    "half a rotation": (NOMIC, {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction 0.5"),
    "learned positions": (GTE, {"position_embedding_type": "absolute"}, "position_embedding_type"),
    "scaled attention": (GTE, {"logn_attention_scale": True}, "logn_attention_scale true"),
    "three matrices": (GTE, {"pack_qkv": False}, "pack_qkv false"),
    "another scaling": (GTE, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "not of type ntk"),
    "mixed scaling": (
        GTE,
        {"rope_scaling": {"type": "ntk", "factor": 8.0, "mixed_b": 1}},
        "not of type",
    ),
    "a factor that is none": (GTE, {"rope_scaling": {"type": "ntk", "factor": -1}}, "a factor of 1 to"),
    "no heads": (GTE, {"num_attention_heads": 0}, "needs hidden_size, num_attention_heads"),
    "a base that is none": (GTE, {"rope_theta": "x"}, "needs a rope_theta"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_all_other_code_stays_refused(case: str) -> None:
    """Whatever is not shown to be equal, one setting at a time."""
    config, change, message = REFUSED[case]
    with pytest.raises(InvalidInput) as refusal:
        native_config(config | change)
    assert message in refusal.value.message
    assert refusal.value.field == "model"


def test_a_folder_that_is_read_without_this_step_stays_refused(tmp_path: Path) -> None:
    """inspect_source alone follows no auto_map, and makes no folder of its own."""
    publish(tmp_path / "model", "nomic-embed-text")
    with pytest.raises(InvalidInput, match="its own code"):
        inspect_source(tmp_path / "model")
