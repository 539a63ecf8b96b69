"""Kinds of encoders other than BERT: built, served and compared with sentence-transformers' encode."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    CLIPModel,
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPTokenizer,
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    MT5Config,
    MT5EncoderModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers import CLIPModel as WholeClip

from model_build.source import inspect_source
from model_build.text_side import with_text_side
from shared.contracts import InputType
from shared.errors import InvalidInput
from tests.model_build.built import embed, served
from tests.model_build.command import VOCABULARY, Run, save_letters
from tests.tiny_torch import edit_json, tiny_model

WIDTH = 32
TEXTS = ["a", "the quick brown fox jumps over the lazy dog", "Hello, World!", "ümlaut 日本", "x " * 90]
PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}
DECODER: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GEMMA = DECODER | {
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 8,
    "sliding_window": 10,
    "use_bidirectional_attention": True,
}
T5: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
Original = tuple[Path, SentenceTransformer]


def _uneven(model: Any) -> Any:
    """Random weights large enough that positions, windows and masks matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _saved(folder: Path, model: Any) -> Original:
    """With two Dense layers without bias, as EmbeddingGemma has, and sentence-t5 one."""
    transformer = Transformer(str(save_letters(_uneven(model), folder.parent / "bare")))
    transformer.max_seq_length = 60
    dense = [
        Dense(a, b, bias=False, activation_function=nn.Identity()) for a, b in ((WIDTH, 64), (64, 24))
    ]
    modules = [transformer, Pooling(WIDTH), *dense, Normalize()]
    SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu").save_pretrained(
        str(folder), create_model_card=False
    )
    return folder, SentenceTransformer(str(folder), device="cpu")


def _of(kind: Any, config: Any) -> Callable[[Path], Original]:
    return lambda folder: _saved(folder, kind(config))


def _clip(folder: Path, *modules: tuple[str, str]) -> Original:
    """As it is at the hub, with a byte-level vocabulary. Its processor of images needs a package that is
    not installed here, so that sentence-transformers' module is given the tokenizer alone."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{each}</w>" for each in letters), "th", "the</w>"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    sides = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    texts = sides | ends | {"vocab_size": len(words), "max_position_embeddings": 64}
    images = sides | {"image_size": 16, "patch_size": 8}
    place = folder / (modules[0][1] if modules else "")
    tokens = folder.parent / "tokens"
    tokens.mkdir()
    (tokens / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (tokens / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    files = {"vocab": str(tokens / "vocab.json"), "merges": str(tokens / "merges.txt")}
    tokenizer = CLIPTokenizer(**files, model_max_length=64)
    tokenizer.save_pretrained(tokens)
    _uneven(
        WholeClip(CLIPConfig(text_config=texts, vision_config=images, projection_dim=12))
    ).save_pretrained(place)
    tokenizer.save_pretrained(place)
    edit_json(place / "tokenizer_config.json", processor_class="CLIPProcessor")
    if modules:
        listed = [
            {"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in modules
        ]
        (folder / "modules.json").write_text(json.dumps(listed))
    chain: list[nn.Module] = [CLIPModel(str(place), tokenizer_name_or_path=str(tokens))]
    chain += [Normalize() for kind, _ in modules if kind == "Normalize"]
    return folder, SentenceTransformer(modules=chain, device="cpu")


KINDS: dict[str, Callable[[Path], Original]] = {
    "EmbeddingGemma": _of(Gemma3TextModel, Gemma3TextConfig(**GEMMA)),
    "a decoder that sees both sides": _of(LlamaModel, LlamaConfig(**DECODER, is_causal=False)),
    "with a window": _of(MistralModel, MistralConfig(**DECODER, is_causal=False, sliding_window=6)),
    "T5": _of(T5EncoderModel, T5Config(**T5)),
    "T5 with its decoder": _of(T5ForConditionalGeneration, T5Config(**T5)),
    "mT5": _of(MT5EncoderModel, MT5Config(**T5)),
    "UMT5": _of(UMT5EncoderModel, UMT5Config(**T5)),
    "CLIP": lambda folder: _clip(folder, ("CLIPModel", "0_CLIPModel")),
    "CLIP in a Transformer, normalised": lambda folder: _clip(
        folder, ("Transformer", ""), ("Normalize", "1_Normalize")
    ),
    "CLIP of transformers": _clip,
}
ENDS = ["a <|endoftext|> b", "the\n<|endoftext|>\nthe <|endoftext|>", "<|endoftext|>"]
"""CLIP's vector is that of its first end token, and a text may have one of its own."""


# Their graphs are those of others above them.
VARIANTS = {
    "a decoder that sees both sides",
    "T5 with its decoder",
    "mT5",
    "CLIP in a Transformer, normalised",
    "CLIP of transformers",
}
BUILT = [("gpu-fp16", kind) for kind in KINDS]
BUILT += [("cpu-fp32", kind) for kind in KINDS if kind not in VARIANTS]


@pytest.mark.parametrize(("target", "kind"), BUILT)
def test_vectors_are_those_of_sentence_transformers(target: Any, kind: str, tmp_path: Path) -> None:
    """In a padded batch and alone, with each prompt by its name; the GPU's from FP16 weights."""
    torch.manual_seed(0)
    folder, theirs = KINDS[kind](tmp_path / "model")
    model = served(folder, target, tmp_path / "out")
    assert model.manifest.dimensions == theirs.encode("a").shape[0]
    texts = [*TEXTS, *(ENDS if "CLIP" in kind else [])]
    asked: list[tuple[InputType | None, Any]] = [
        (None, theirs.encode),
        ("query", theirs.encode_query),
        ("document", theirs.encode_document),
    ]
    for input_type, encode in asked:
        expected = encode(texts, show_progress_bar=False)
        for found in (
            embed(model, texts, input_type),
            np.concatenate([embed(model, [text], input_type) for text in texts]),
        ):
            assert _cosines(found, expected).min() > (0.9999 if target == "cpu-fp32" else 0.999)
            if target == "cpu-fp32":  # lengths too
                np.testing.assert_allclose(found, expected, atol=3e-5)


def _cosines(a: Any, b: Any) -> Any:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_the_command_builds_clip(run: Run, tmp_path: Path) -> None:
    """Through the gates, which compare odd texts too, and without a processor of images."""
    torch.manual_seed(0)
    folder, _ = KINDS["CLIP in a Transformer, normalised"](tmp_path / "model")
    ran = run(folder, "--target", "cpu-fp32")
    assert ran.returncode == 0, ran.stderr
    assert "deprecated" not in ran.stderr


def test_what_t5_needs_in_fp32_stays_so(tmp_path: Path) -> None:
    """Its feed-forward blocks overflow in FP16, and transformers' own code expects FP32 there."""
    torch.manual_seed(0)
    folder, _ = KINDS["T5"](tmp_path / "model")
    served(folder, "gpu-fp16", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    kept = {name for name, each in tensors.items() if each.dtype == torch.float32}
    assert kept == {f"encoder.block.{n}.layer.1.DenseReluDense.wo.weight" for n in (0, 1)}
    assert not any(name.startswith("decoder.") for name in tensors)


def _edited(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / name, **values)


def _without_projection(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _no_clip(folder: Path) -> None:
    tiny_model(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "sentence_transformers.models.CLIPModel"
    (folder / "modules.json").write_text(json.dumps(modules))


def _dense_after_clip(folder: Path) -> None:
    _clip(folder, ("CLIPModel", ""), ("Dense", "1_Dense"))


def _t5_classifier(folder: Path) -> None:
    save_letters(T5ForSequenceClassification(T5Config(**T5)), folder)


REFUSED: dict[str, tuple[Callable[[Path], Any], Callable[[Path], None], str]] = {
    "CLIP without its projection": (_clip, _without_projection, "the weights lack text_projection"),
    "CLIP with another end": (_clip, _edited("config.json", text_config={"eos_token_id": 7}), "token 7"),
    "CLIP that is none": (_no_clip, lambda folder: None, "its config.json is not one's"),
    "CLIP and a Dense": (_dense_after_clip, lambda folder: None, "a Dense after CLIP"),
    "a classifier of T5's": (_t5_classifier, lambda folder: None, "needs its decoder"),
    "another encoder-decoder": (
        tiny_model,
        _edited("config.json", model_type="bart", d_model=32),
        "bart is an encoder-decoder; this builder runs the encoders of mt5, t5, umt5 alone",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused(case: str, tmp_path: Path) -> None:
    """By its name, with what is wrong with it."""
    make, change, message = REFUSED[case]
    make(tmp_path / "model")
    change(tmp_path / "model")
    with pytest.raises(InvalidInput) as refusal:
        inspect_source(with_text_side(tmp_path / "model", tmp_path / "text"))
    assert message in refusal.value.message
    assert refusal.value.field == "model"
