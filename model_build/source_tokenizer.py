"""Reads a model's tokenizer as the text of one tokenizer.json, converting a slow one.

It does not know the model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from model_build.configuration import SentenceBert, TokenContent, TokenizerConfig
from model_build.folder import fields_of, read_json, read_text, refused, refusing
from shared.engines.panics import panics_are_errors
from shared.models.manifest import MAX_TOKENIZER_BYTES

_TRIAL = Path(__file__).with_name("tokenizer_trial.py")
_TRIAL_S = 120
"""The largest known tokenizer.json take a few seconds."""

_PLAIN = ("vocab.txt", "vocab.json")
_VOCABULARIES = (*_PLAIN, "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")


def read_tokenizer(folder: Path) -> tuple[str, TokenizerConfig]:
    """The text of tokenizer.json, and tokenizer_config.json. Raises InvalidInput (field "model")."""
    settings = read_json(folder / "tokenizer_config.json") or {}
    stated = fields_of(settings, TokenizerConfig, "tokenizer_config.json")
    if "auto_map" in settings:
        raise refused("the tokenizer needs its own code (auto_map), which this builder never runs")
    text = read_text(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)
    if text is None and any((folder / name).is_file() for name in _VOCABULARIES):
        text = _converted_tokenizer(folder)
    if text is None:
        # Otherwise transformers would create a tokenizer with special tokens only.
        raise refused("there is no tokenizer.json and no vocabulary to convert")
    _try(text)
    name = "sentence_bert_config.json"
    if fields_of(read_json(folder / name) or {}, SentenceBert, name).do_lower_case:
        text = _lower_casing(text)
    return text, stated


def _try(text: str) -> None:
    """Raise InvalidInput unless the library can load and use `text`: see tokenizer_trial."""
    command = [sys.executable, "-P", str(_TRIAL)]
    try:
        ended = subprocess.run(  # noqa: S603 - the file is ours
            command, input=text.encode(), capture_output=True, timeout=_TRIAL_S
        )
    except subprocess.TimeoutExpired as error:
        raise refused(f"loading tokenizer.json took more than {_TRIAL_S} s") from error
    if ended.returncode != 0:
        raise refused("tokenizer.json is not a tokenizer that this builder can read")


def _converted_tokenizer(folder: Path) -> str:
    if not any((folder / name).is_file() for name in _PLAIN) and find_spec("sentencepiece") is None:
        raise refused(
            "there is no tokenizer.json but only a sentencepiece vocabulary, and the package "
            "sentencepiece is not part of a build: where it is installed, "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes a tokenizer.json"
        )
    with (
        refusing("there is no tokenizer.json, and the slow tokenizer cannot be converted"),
        panics_are_errors(),
    ):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=False, local_files_only=True
        )
        text: str = tokenizer.backend_tokenizer.to_str()
    return text


def _lower_casing(text: str) -> str:
    """Add lower-casing to tokenizer.json: sentence-transformers does it outside the tokenizer."""
    tokenizer = json.loads(text)
    lowercase = {"type": "Lowercase"}
    own = tokenizer.get("normalizer")
    both = {"type": "Sequence", "normalizers": [lowercase, own]}
    tokenizer["normalizer"] = both if own else lowercase
    return json.dumps(tokenizer, ensure_ascii=False)


def pad_token_id(config: Any, tokenizer_json: str, settings: TokenizerConfig) -> int:
    """The configuration's id, because position ids may depend on it; else the tokenizer's; else 0.

    Raises InvalidInput if the model has no embedding for it.
    """
    stated = getattr(config, "pad_token_id", None)
    if stated is not None and stated >= 0:
        return int(stated)
    token = settings.pad_token
    text = token.content if isinstance(token, TokenContent) else token
    found = Tokenizer.from_str(tokenizer_json).token_to_id(text) if text else None
    if found is not None and found >= config.vocab_size:
        raise refused(
            f"the tokenizer pads with token {found}, but config.json has vocab_size {config.vocab_size}"
        )
    return int(found or 0)
