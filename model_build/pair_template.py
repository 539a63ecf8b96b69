"""Reads how a reranker's pairs become one text: from the chat template of its tokenizer.

It does not know weights, scores or how a text is tokenised.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sentence_transformers.base.modality import InputFormatter
from transformers import AutoTokenizer

from model_build.configuration import SentenceBert
from model_build.folder import fields_of, read_json, refused, refusing
from shared.models.manifest import PairTemplate

_QUERY, _DOCUMENT = "BLITZQUERY", "BLITZDOCUMENT"
_TRIALS = ("", " a ", "\n\tb\n", "<Document>: {{ c }} & 'd' \"e\"", "é 你好 😀")
"""What a template that changes its texts would change."""

MAX_CHARS = 16_384
"""Of a template's own text. The published ones have some 400."""


def read_template(
    folder: Path, model_type: str, prompt: str | None, *, has_modules: bool
) -> PairTemplate | None:
    """The template of the transformer in `folder`; None where pairs are two segments.

    prompt: the model's default prompt, which is its system message. has_modules: whether a modules.json
    lists the transformer. sentence-transformers uses a chat template where it is told to, and in a
    folder without modules.json wherever there is one.

    Raises InvalidInput for a template that does not carry a query and a document as they are, in this
    order.
    """
    name = "sentence_bert_config.json"
    stated = fields_of(read_json(folder / name) or {}, SentenceBert, name)
    configured = read_json(folder / "tokenizer_config.json") or {}
    is_there = (folder / "chat_template.jinja").is_file() or "chat_template" in configured
    if not is_there or (has_modules and "message" not in (stated.modality_config or {})):
        return None
    options = dict(stated.processing_kwargs or {})
    asked = options.pop("chat_template", {})
    if options or not isinstance(asked, dict):
        raise refused(
            f"{name} has processing_kwargs other than chat_template, which this builder does not apply"
        )
    with refusing("the tokenizer's chat template cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return _checked(_Rendering(tokenizer, model_type, prompt, asked, stated.modality_config or {}))


class _Rendering:
    """Renders pairs as sentence-transformers does."""

    def __init__(
        self, tokenizer: Any, model_type: str, prompt: str | None, options: dict[str, Any], modes: Any
    ) -> None:
        message = modes.get("message")
        form = message.get("format", "auto") if isinstance(message, dict) else "auto"
        self._formatter = InputFormatter(model_type, form, tokenizer)
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._options = options

    def __call__(self, query: str, document: str) -> str:
        with refusing("the tokenizer's chat template cannot carry a query and a document"):
            messages = [self._formatter.pair_to_messages([query, document])]
            if self._prompt:
                messages = self._formatter.prepend_prompt_to_messages(messages, self._prompt)
            text: str = self._tokenizer.apply_chat_template(messages[0], tokenize=False, **self._options)
        return text


def _checked(render: _Rendering) -> PairTemplate:
    whole = render(_QUERY, _DOCUMENT)
    if whole.count(_QUERY) != 1 or whole.count(_DOCUMENT) != 1:
        raise refused("the tokenizer's chat template does not carry a query and a document once each")
    before, _, rest = whole.partition(_QUERY)
    between, found, after = rest.partition(_DOCUMENT)
    if not found:
        raise refused("the tokenizer's chat template puts the document before the query")
    if len(before) + len(between) + len(after) > MAX_CHARS:
        raise refused(f"the tokenizer's chat template has more than {MAX_CHARS} characters of its own")
    for text in _TRIALS:
        if render(text, text) != f"{before}{text}{between}{text}{after}":
            raise refused(
                "the tokenizer's chat template changes the texts that it carries, as by trimming: "
                "this builder serves templates that leave them as they are"
            )
    return PairTemplate(before, between, after)


def without_special_tokens(tokenizer_json: str) -> str:
    """tokenizer.json without a post-processor: a template brings its special tokens as text."""
    tokenizer = json.loads(tokenizer_json)
    tokenizer["post_processor"] = None
    return json.dumps(tokenizer, ensure_ascii=False)
