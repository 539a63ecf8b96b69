"""Rerankers made of language models, built and served, against sentence-transformers on the folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from model_build.describe import describe
from model_build.export import export_onnx, optimize_offline
from model_build.fp16 import export_fp16
from model_build.int8 import quantize_per_row
from model_build.odd_texts import ODD_TEXTS
from model_build.serving import Served
from model_build.source import inspect_source
from shared.errors import InputTooLong, InvalidInput
from shared.inference.steps import completed
from shared.inference.tokenization import Tokenizer
from shared.models.manifest import Source, Target
from tests.server import ROOT
from tests.tiny_torch import DECODER, WORDS, edit_json, save_tiny

# As Qwen3-Reranker's: an instruction in the system message, and an end behind the document.
TEMPLATE = (
    "{%- set ns = namespace(task='d e f') -%}"
    "{%- for m in messages if m['role'] == 'system' %}{%- set ns.task = m['content'] -%}{% endfor -%}"
    "<s> i {{ ns.task }} q {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') "
    "| first }} d {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first "
    "}} </s> x y z"
)
QUERY = "a b c"
DOCUMENTS = [
    *(text for texts in ODD_TEXTS.values() for text in texts),
    "a b c d e f g h",
    "<s> k </s>",
    "d e " * 40,  # cut
]
UNTIED = {"tie_word_embeddings": False}
RERANKERS: dict[str, tuple[Any, Any, dict[str, Any] | None]] = {
    "qwen3, two words": (
        Qwen3ForCausalLM,
        Qwen3Config(**DECODER, **UNTIED),
        {"true_token_id": 7, "false_token_id": 9},
    ),
    "qwen3, tied head": (
        Qwen3ForCausalLM,
        Qwen3Config(**DECODER, tie_word_embeddings=True),
        {"true_token_id": 7, "false_token_id": 9},
    ),
    "gemma, one word": (GemmaForCausalLM, GemmaConfig(**DECODER), {"true_token_id": 7}),
    "classifier with a template": (
        Qwen3ForSequenceClassification,
        Qwen3Config(**DECODER, num_labels=1),
        None,
    ),
}


def save_reranker(folder: Path, name: str = "qwen3, two words", template: str = TEMPLATE) -> Path:
    """A folder as sentence-transformers saves it, or transformers a classifier."""
    kind, config, score = RERANKERS[name]
    save_tiny(folder, kind, config)
    edit_json(folder / "tokenizer_config.json", model_max_length=36)
    (folder / "chat_template.jinja").write_text(template)
    if score is None:
        return folder
    listed = [("Transformer", ""), ("LogitScore", "1_LogitScore")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.base.modules.{kind}"}
        for n, (kind, path) in enumerate(listed)
    ]
    modules[1]["type"] = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_LogitScore").mkdir()
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(score))
    way = {"method": "forward", "method_output_name": "logits"}
    edit_json(
        folder / "sentence_bert_config.json",
        transformer_task="text-generation",
        modality_config={"text": way, "message": {**way, "format": "flat"}},
        module_output_name="causal_logits",
    )
    edit_json(
        folder / "config_sentence_transformers.json",
        model_type="CrossEncoder",
        prompts={"web": "w e b", "other": "o"},
        default_prompt_name="web",
    )
    return folder


def built(folder: Path, out: Path, target: Target) -> Served:
    source = inspect_source(folder)
    out.mkdir()
    if target == "gpu-fp16":
        export_fp16(source, out)
    else:
        export_onnx(source, out / "raw.onnx")
        if target == "cpu-int8":
            quantize_per_row(out / "raw.onnx", out / "int8.onnx")
        optimize_offline(out / ("int8.onnx" if target == "cpu-int8" else "raw.onnx"), out / "model.onnx")
    return Served(out, describe(out, source, Source("here", "1"), "tiny", target))


def scores_of(folder: Path, pairs: list[tuple[str, str]]) -> Any:
    truth = CrossEncoder(
        str(folder), device="cpu", local_files_only=True, activation_fn=torch.nn.Identity()
    )
    return truth.predict(pairs, batch_size=4)


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8", "gpu-fp16"])
@pytest.mark.parametrize("name", RERANKERS)
def test_a_built_reranker_scores_as_sentence_transformers_does(
    name: str, target: Target, tmp_path: Path
) -> None:
    """Over texts of every kind, one of them cut, in one request."""
    folder = save_reranker(tmp_path / "model", name)
    pairs = [(QUERY, document) for document in DOCUMENTS]
    served = built(folder, tmp_path / "built", target)
    try:
        found = served.score(pairs)[:, 0]
    finally:
        served.close()
    truth = scores_of(folder, pairs)
    assert np.ptp(truth) > 0.1
    assert np.allclose(found, truth, atol={"cpu-fp32": 1e-4, "cpu-int8": 0.5, "gpu-fp16": 0.01}[target])


def test_the_guide_shows_how_a_plain_language_model_is_saved_so(tmp_path: Path) -> None:
    """The block of docs/models.md, run over a plain folder, which the builder refuses."""
    plain = save_reranker(tmp_path / "plain")
    (plain / "chat_template.jinja").rename(tmp_path / "chat_template.jinja")
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (plain / name).unlink()
    with pytest.raises(InvalidInput, match=r"docs/models\.md"):
        inspect_source(plain)
    guide = (ROOT / "docs" / "models.md").read_text("utf-8")
    (block,) = (each for each in re.findall(r"```python\n(.*?)```", guide, re.S) if "LogitScore" in each)
    for shown, here in (
        ('"FOLDER"', repr(str(plain))),
        ('"OUT"', repr(str(tmp_path / "out"))),
        ('"chat_template.jinja"', repr(str(tmp_path / "chat_template.jinja"))),
        ('["yes", "no"]', '["y", "n"]'),
    ):
        assert shown in block
        block = block.replace(shown, here)
    exec(block, {})
    source = inspect_source(tmp_path / "out")
    assert (source.pooling, source.dimensions, source.template is None) == ("last", 1, False)


def _without_query(template: str) -> str:
    return template.replace("'query'", "'user'")


NO_TEMPLATE = "no chat template for pairs"
REFUSED: dict[str, tuple[str, Any, str]] = {
    "a template that drops the query": ("chat_template.jinja", _without_query, "once each"),
    "a template that trims": (
        "chat_template.jinja",
        lambda text: text.replace(
            "map(attribute='content') | first }} d", "map(attribute='content') | first | trim }} d"
        ),
        "changes the texts",
    ),
    "a document before the query": (
        "chat_template.jinja",
        lambda text: (
            text.replace("'query'", "'x'").replace("'document'", "'query'").replace("'x'", "'document'")
        ),
        "the document before the query",
    ),
    "a text twice": ("chat_template.jinja", lambda text: text + text, "once each"),
    "no template": ("chat_template.jinja", lambda _: None, NO_TEMPLATE),
    "no message modality": (
        "sentence_bert_config.json",
        lambda _: json.dumps({"modality_config": {"text": {}}}),
        NO_TEMPLATE,
    ),
    "further options": (
        "sentence_bert_config.json",
        lambda text: json.dumps(json.loads(text) | {"processing_kwargs": {"text": {"max_length": 3}}}),
        "processing_kwargs other than chat_template",
    ),
    "a word outside the vocabulary": (
        "1_LogitScore/config.json",
        lambda _: json.dumps({"true_token_id": 4000}),
        "not in the vocabulary",
    ),
    "no word": ("1_LogitScore/config.json", lambda _: "{}", "true_token_id"),
    "capped logits": (
        "config.json",
        lambda text: json.dumps(json.loads(text) | {"final_logit_softcapping": 30.0}),
        "final_logit_softcapping",
    ),
    "no language model": (
        "config.json",
        lambda text: json.dumps(json.loads(text) | {"architectures": ["Qwen3Model"]}),
        "no language model",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_score_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    name, edit, said = REFUSED[case]
    folder = save_reranker(tmp_path / "model")
    text = edit((folder / name).read_text())
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(InvalidInput, match=said) as refusal:
        inspect_source(folder)
    assert refusal.value.field == "model"


def test_the_pairs_of_a_request_keep_its_limits(tmp_path: Path) -> None:
    """Counted by hand, of 36 that the model reads. Digits, by which the template's end is found, are
    unknown to this vocabulary, here as in sentence-transformers: one of them counts to that end."""
    source = inspect_source(save_reranker(tmp_path / "model"))
    tokenizer = Tokenizer(source.tokenizer_json, source.max_tokens, template=source.template)
    before = ["<s>", *"iwebqabcd"]
    after = ["</s>", *"xyz"]

    def words(document: str, **options: Any) -> tuple[list[str], bool]:
        (pair,) = completed(tokenizer.encode_pairs(QUERY, [document], **options))
        return [WORDS[token] for token in pair.ids], pair.is_cut

    assert words("e f") == ([*before, "e", "f", *after], False)
    assert words("e f g h", max_document_tokens=3) == ([*before, "e", "f", "g", *after], True)
    assert words("e f g", max_document_tokens=3) == ([*before, "e", "f", "g", *after], False)
    long = words("e " * 30)
    assert long == ([*before, *["e"] * 21, "<unk>", *after], True)
    assert words("e " * 30_000) == long
    assert words("e " * 30_000, max_document_tokens=2) == ([*before, "e", "e", *after], True)
    with pytest.raises(InputTooLong) as refusal:
        words("e " * 30, truncate=False)
    assert refusal.value.field == "documents[0]"


UNREAD: dict[str, tuple[str, dict[str, Any], type[InvalidInput], str]] = {
    "the beginning would be cut": (QUERY, {"side": "left"}, InvalidInput, "truncation_side"),
    "no room for a document": ("a " * 26, {}, InputTooLong, "query"),
    "a query longer than the model reads": ("a " * 3_000, {}, InputTooLong, "query"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_a_request_that_would_not_be_read_is_refused(case: str, tmp_path: Path) -> None:
    query, options, kind, field = UNREAD[case]
    source = inspect_source(save_reranker(tmp_path / "model"))
    tokenizer = Tokenizer(source.tokenizer_json, source.max_tokens, template=source.template)
    with pytest.raises(kind) as refusal:
        completed(tokenizer.encode_pairs(query, ["e", "f"], **options))
    assert refusal.value.field == field


def test_a_text_alone_is_no_pair(tmp_path: Path) -> None:
    source = inspect_source(save_reranker(tmp_path / "model"))
    tokenizer = Tokenizer(source.tokenizer_json, source.max_tokens, template=source.template)
    with pytest.raises(InvalidInput, match="pairs") as refusal:
        completed(tokenizer.encode_each([("a", "b"), "c"]))
    assert refusal.value.field == "inputs[1]"
    (pair,) = completed(tokenizer.encode_each([(QUERY, "e")]))
    assert pair == completed(tokenizer.encode_pairs(QUERY, ["e"]))[0]
