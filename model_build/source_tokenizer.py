"""Reads the tokenizer of a model's folder as the text of one tokenizer.json, converting if it must.

It does not know the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from model_build.folder import read_json, refused
from shared.panics import panics_are_errors

_VOCABULARIES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")


def read_tokenizer(folder: Path) -> tuple[str, dict[str, Any]]:
    """The text of tokenizer.json, and tokenizer_config.json."""
    settings = read_json(folder / "tokenizer_config.json") or {}
    if "auto_map" in settings:
        raise refused("the tokenizer brings its own code (auto_map), which this builder never runs")
    path = folder / "tokenizer.json"
    if path.is_file():
        text = path.read_text("utf-8")
    elif any((folder / name).is_file() for name in _VOCABULARIES):
        text = _converted_tokenizer(folder)
    else:
        # Without this check transformers would make up a tokenizer of nothing but special tokens.
        raise refused("there is no tokenizer.json, and no vocabulary to make one from")
    try:
        with panics_are_errors():
            Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise refused("tokenizer.json is not a tokenizer this builder reads") from error
    if (read_json(folder / "sentence_bert_config.json") or {}).get("do_lower_case"):
        text = _lower_casing(text)
    return text, settings


def _converted_tokenizer(folder: Path) -> str:
    try:
        with panics_are_errors():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, use_fast=True, trust_remote_code=False, local_files_only=True
            )
            text: str = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # whatever the slow tokenizer's own library raises
        raise refused("there is no tokenizer.json, and the slow tokenizer does not convert") from error
    return text


def _lower_casing(text: str) -> str:
    """tokenizer.json that lower-cases first: sentence-transformers does that outside the tokenizer."""
    tokenizer = json.loads(text)
    lowercase = {"type": "Lowercase"}
    own = tokenizer.get("normalizer")
    both = {"type": "Sequence", "normalizers": [lowercase, own]}
    tokenizer["normalizer"] = both if own else lowercase
    return json.dumps(tokenizer, ensure_ascii=False)


def pad_token_id(config: Any, tokenizer_json: str, settings: dict[str, Any]) -> int:
    """The configuration's, because position ids may skip it; else the tokenizer's; else 0."""
    if getattr(config, "pad_token_id", None) is not None:
        return int(config.pad_token_id)
    token = settings.get("pad_token")
    text = token.get("content") if isinstance(token, dict) else token
    found = Tokenizer.from_str(tokenizer_json).token_to_id(text) if text else None
    return int(found or 0)
