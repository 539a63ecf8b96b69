"""What a model's folder says about itself is read whole; odd folders are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer

from model_build.source import inspect_source
from shared.errors import InvalidInput
from shared.inference.steps import completed
from shared.inference.tokenization import Tokenizer as SharedTokenizer
from shared.vectors import DenseLayer, Poolings
from tests.tiny_torch import (
    ENCODERS,
    OLD,
    PLAIN,
    edit_json,
    save_random,
    sentence_model,
    tiny_cross_encoder,
    tiny_model,
)


def test_a_transformers_folder_is_read_with_the_pooling_that_is_given(tmp_path: Path) -> None:
    """Nothing normalised, all positions but RoBERTa's two."""
    plain = save_random(tmp_path / "bert", *ENCODERS["bert"], seed=0)
    bert = inspect_source(plain, "cls")
    assert (bert.architecture, bert.pooling, bert.normalize) == ("BertModel", "cls", False)
    assert (bert.dimensions, bert.max_tokens, bert.pad_token_id) == (32, 40, 1)
    assert inspect_source(tiny_model(tmp_path / "roberta", "roberta")).max_tokens == 38


def test_a_sentence_transformers_folder_is_read_whole(tmp_path: Path) -> None:
    """Modules, dense weights, prompts, length and Matryoshka sizes come from their own files."""
    new = "sentence_transformers.base.modules."
    modules = [
        (new + "transformer.Transformer", ""),
        ("sentence_transformers.sentence_transformer.modules.pooling.Pooling", "1_Pooling"),
        (new + "dense.Dense", "2_Dense"),
        (new + "normalize.Normalize", "3_Normalize"),
    ]
    folder = sentence_model(tmp_path / "model", modules, {"pooling_mode": "lasttoken"})
    weight = np.arange(64, dtype=np.float32).reshape(2, 32)
    edit_json(folder / "sentence_bert_config.json", max_seq_length=24)
    edit_json(
        folder / "config_sentence_transformers.json",
        prompts={"query": "query: ", "document": ""},
        default_prompt_name="document",
    )
    edit_json(folder / "config.json", matryoshka_dimensions=[2, 1])
    (folder / "2_Dense").mkdir()
    edit_json(folder / "2_Dense" / "config.json", activation_function="torch.nn.modules.linear.Identity")
    save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors")
    source = inspect_source(folder)
    assert (source.pooling, source.normalize, source.max_tokens) == ("last", True, 24)
    assert (source.dimensions, source.matryoshka_dimensions) == (2, (1, 2))
    assert source.prompts == {"query": "query: ", "document": ""}
    assert source.default_prompt == "document"
    (layer,) = source.layers
    assert isinstance(layer, DenseLayer)
    assert (layer.activation, layer.bias) == ("identity", None)
    np.testing.assert_array_equal(layer.weight, weight)


def test_a_classifier_alone_is_a_cross_encoder(tmp_path: Path) -> None:
    """One logit a label, in the order of id2label; no pooling, no prompts, nothing normalised."""
    source = inspect_source(tiny_cross_encoder(tmp_path / "model", labels=("no", "yes")))
    assert (source.task, source.labels, source.dimensions) == ("cross-encoder", ("no", "yes"), 2)
    assert (source.pooling, source.normalize, source.prompts) == (None, False, {})
    assert source.architecture == "BertForSequenceClassification"


def test_what_sentence_transformers_saves_is_a_cross_encoder(tmp_path: Path) -> None:
    """Its modules.json with a Transformer alone, and its activation, which the server does not use."""
    folder = tiny_cross_encoder(tmp_path / "model")
    edit_json(
        folder / "config.json",
        sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.0"},
    )
    assert inspect_source(folder).labels == ("relevant",)
    saved = tmp_path / "saved"
    CrossEncoder(str(folder), device="cpu").save_pretrained(str(saved))
    assert (saved / "modules.json").is_file()
    assert inspect_source(saved).task == "cross-encoder"


def test_a_classifier_before_a_pooling_is_an_embedding_model(tmp_path: Path) -> None:
    """Its head is left over from how it was trained."""
    folder = sentence_model(tmp_path / "model", PLAIN, {"pooling_mode": "mean"})
    tiny_cross_encoder(folder)
    source = inspect_source(folder)
    assert (source.task, source.pooling, source.labels) == ("embedding", "mean", ())


def test_the_longest_input_is_what_sentence_transformers_reads(tmp_path: Path) -> None:
    """model_max_length counts; the tokenizer's saved truncation and its max_length do not."""
    folder = tiny_cross_encoder(tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.save(str(folder / "tokenizer.json"))
    edit_json(folder / "tokenizer_config.json", max_length=12, model_max_length=20, pad_token="<pad>")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    original = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    assert inspect_source(folder).max_tokens == original.max_seq_length == 20


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_weightedmean_tokens": True}, "weighted_mean"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_length"),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
    ],
)
def test_pooling_is_read_from_old_and_new_keys(
    config: dict[str, Any], expected: Poolings, tmp_path: Path
) -> None:
    """The booleans of old versions and the single key of new ones mean the same."""
    assert inspect_source(sentence_model(tmp_path / "model", PLAIN, config)).pooling == expected


def test_lower_casing_outside_the_tokenizer_moves_into_it(tmp_path: Path) -> None:
    """`do_lower_case` of sentence-transformers is part of the tokenizer that is published."""
    folder = sentence_model(tmp_path / "model", PLAIN, {"pooling_mode": "mean"})
    before = SharedTokenizer(inspect_source(folder).tokenizer_json, 16)
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    after = SharedTokenizer(inspect_source(folder).tokenizer_json, 16)
    assert completed(before.encode(["A b"])) == [[0, 3, 5, 2]]
    assert completed(after.encode(["A b"])) == [[0, 4, 5, 2]]


def test_a_slow_tokenizer_is_converted(tmp_path: Path) -> None:
    """A vocab.txt is enough: the tokenizer is built from it."""
    folder = tiny_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    edit_json(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    tokenizer = SharedTokenizer(inspect_source(folder).tokenizer_json, 16)
    assert completed(tokenizer.encode(["Hello world"])) == [[2, 5, 6, 3]]


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _unknown_type(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="not-a-model")


def _custom_code(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling.Own"})


def _custom_tokenizer(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"\n\x05\n\x03<s>")


def _pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _modules(*modules: tuple[str, str]) -> Any:
    def change(folder: Path) -> None:
        (folder / "modules.json").write_text(json.dumps([{"type": t, "path": p} for t, p in modules]))

    return change


def _pooling(**config: Any) -> Any:
    def change(folder: Path) -> None:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))

    return change


def _prompting_cross_encoder(folder: Path) -> None:
    (folder / "modules.json").unlink()
    tiny_cross_encoder(folder)
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    edit_json(folder / "config_sentence_transformers.json", **settings)


def _default_prompt(folder: Path) -> None:
    edit_json(folder / "config_sentence_transformers.json", default_prompt_name="query")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_config, "config.json"),
        (_unknown_type, "unknown architecture: not-a-model"),
        (_custom_code, "own code"),
        (_custom_tokenizer, "own code"),
        (_no_tokenizer, "no tokenizer.json"),
        (_sentencepiece, "only a sentencepiece vocabulary.*save_pretrained"),
        (_pickles, "pickles"),
        (_no_weights, "no model.safetensors"),
        (_modules(*PLAIN, (OLD + "LSTM", "2_LSTM")), "LSTM module"),
        (
            _modules(PLAIN[0], (OLD + "SpladePooling", "1_Pooling")),
            "a sparse encoder is a",
        ),
        (_modules(PLAIN[0], ("custom.Pooling", "1_Pooling")), "Pooling module"),
        (_modules(*PLAIN[::-1]), "the modules are not"),
        (_modules(PLAIN[0]), "BertModel is not a cross-encoder"),
        (_prompting_cross_encoder, "prepends a prompt to its texts"),
        (_modules(PLAIN[0], (OLD + "Pooling", "../other")), "outside"),
        (_pooling(pooling_mode=["mean", "attention"]), "mean \\+ attention"),
        (_pooling(pooling_mode="mean", include_prompt=False), "prompt"),
        (_default_prompt, "default_prompt_name"),
    ],
)
def test_what_cannot_be_served_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    """The error names the model field and says what is wrong, without the path."""
    folder = sentence_model(tmp_path / "model", PLAIN, {"pooling_mode": "mean"})
    change(folder)
    with pytest.raises(InvalidInput, match=message) as refusal:
        inspect_source(folder)
    assert refusal.value.field == "model"
    assert str(tmp_path) not in str(refusal.value)
