"""Tiny models of real architectures with random weights, saved as their libraries save them."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    MistralConfig,
    MistralModel,
    MPNetConfig,
    MPNetForSequenceClassification,
    MPNetModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from model_build.fp16 import export_fp16
from model_build.source import inspect_source
from shared.contracts import TokenPair, Tokens
from shared.models.manifest import SCHEMA_VERSION, Manifest, Source
from shared.vectors import Pooling

WORDS = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "##a", "##b", "##c"]
SEQUENCES = [[0, 5, 9, 7, 2], [0, 4, 2], [0, 6, 8, 11, 20, 21, 22, 13, 2]]
SMALL: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
DISTIL: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "n_layers": 2,
    "n_heads": 4,
    "dim": 32,
    "hidden_dim": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
ENCODERS: dict[str, tuple[Any, Any]] = {
    "bert": (BertModel, BertConfig(**SMALL)),
    "roberta": (RobertaModel, RobertaConfig(**SMALL)),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**SMALL)),
    "distilbert": (DistilBertModel, DistilBertConfig(**DISTIL)),
    "mpnet": (MPNetModel, MPNetConfig(**SMALL)),
}
CLASSIFIERS: dict[str, Any] = {
    "bert": BertForSequenceClassification,
    "roberta": RobertaForSequenceClassification,
    "xlm-roberta": XLMRobertaForSequenceClassification,
    "distilbert": DistilBertForSequenceClassification,
    "mpnet": MPNetForSequenceClassification,
}
PAIRS: list[Tokens] = [
    TokenPair([0, 5, 9, 2, 7, 8, 2], [0, 0, 0, 0, 1, 1, 1]),
    TokenPair([0, 4, 2, 6, 2], [0, 0, 0, 1, 1]),
    [0, 6, 8, 2],
]


def tiny_model(folder: Path, architecture: str = "bert", seed: int = 0) -> Path:
    """A folder with random weights, large enough to make attention uneven, and mean pooling."""
    kind, config = ENCODERS[architecture]
    return state_pooling(save_random(folder, kind, config, seed))


def state_pooling(folder: Path, **pooling: Any) -> Path:
    """Make a transformers folder one of sentence-transformers. pooling: its config; mean by default."""
    listed = [{"idx": n, "name": str(n), "path": p, "type": t} for n, (t, p) in enumerate(PLAIN)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    width = {"word_embedding_dimension": 32, "pooling_mode": "mean"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(width | pooling))
    return folder


def tiny_cross_encoder(
    folder: Path,
    architecture: str = "bert",
    seed: int = 0,
    labels: tuple[str, ...] = ("relevant",),
    positions: int = 40,
) -> Path:
    """`tiny_model` with a classifier over `labels`; BERT's tells the texts of a pair apart."""
    config = copy.deepcopy(ENCODERS[architecture][1])
    config.max_position_embeddings = positions
    config.num_labels = len(labels)
    if "roberta" in architecture:
        config.type_vocab_size = 1  # as the real ones have; the class's default is BERT's
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    return save_random(folder, CLASSIFIERS[architecture], config, seed)


def save_random(folder: Path, kind: Any, config: Any, seed: int) -> Path:
    """Random weights, uneven enough for attention to matter, and a tokenizer that knows pairs."""
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def edit_json(path: Path, **values: Any) -> None:
    value = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(value | values))


DECODER: dict[str, Any] = SMALL | {"num_key_value_heads": 2, "head_dim": 8}
ARCHITECTURES: dict[str, tuple[Any, Any]] = ENCODERS | {
    "qwen2": (Qwen2Model, Qwen2Config(**DECODER)),
    "qwen3": (Qwen3Model, Qwen3Config(**DECODER)),
    "mistral": (MistralModel, MistralConfig(**DECODER)),
}


POOLINGS: dict[Pooling, str] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "last": "lasttoken",
    "weighted_mean": "weightedmean",
}


def save_tiny(folder: Path, kind: Any, config: Any) -> Path:
    """With what transformers' own tokenizer class needs to know."""
    save_random(folder, kind, config, seed=0)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 30}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def save_sentence_model(folder: Path, architecture: str, pooling: Pooling) -> Path:
    """A sentence-transformers folder with a prompt, its modules and no normalisation."""
    save_tiny(folder, *ARCHITECTURES[architecture])
    state_pooling(folder, pooling_mode=POOLINGS[pooling])
    prompts = {"prompts": {"query": "f i n d "}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def manifest_of_folder(folder: Path) -> Manifest:
    """What the builder would say of a source folder."""
    source = inspect_source(folder)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name="tiny",
        revision="r1",
        task=source.task,
        target="gpu-fp16",
        architecture=source.architecture,
        source=Source("there", "1"),
        files=(),
        model_file="model.safetensors",
        tokenizer_file="tokenizer.json",
        pad_token_id=source.pad_token_id,
        max_tokens=source.max_tokens,
        dimensions=source.dimensions,
        pooling=source.pooling,
        labels=source.labels,
        template=source.template,
        prompts=source.prompts,
    )


def as_fp16(folder: Path, out: Path) -> Path:
    """The published form of a source folder."""
    out.mkdir()
    export_fp16(inspect_source(folder), out)
    shutil.copy(folder / "tokenizer.json", out)
    return out


def sentence_model(folder: Path, modules: list[tuple[str, str]], pooling: dict[str, Any]) -> Path:
    """`tiny_model` with a modules.json of (class, folder)."""
    tiny_model(folder)
    listed = [{"idx": i, "name": str(i), "path": p, "type": t} for i, (t, p) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


OLD = "sentence_transformers.models."
PLAIN = [(OLD + "Transformer", ""), (OLD + "Pooling", "1_Pooling")]
