from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HfTokenizer

from shared.engines.panics import Panicked, panics_are_errors
from shared.errors import InvalidArtefact, InvalidInput
from shared.inference.steps import completed
from shared.inference.tokenization import Tokenizer

_TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"},
}
_AT_LOAD = _TOKENIZER | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": None}}
_AT_ENCODING = _TOKENIZER | {
    "pre_tokenizer": {
        "type": "Split",
        "pattern": {"Regex": "(a+)+c"},  # backtracks until the library gives up
        "behavior": "Isolated",
        "invert": False,
    }
}


def test_the_library_does_panic_so() -> None:
    """Else these tests would show nothing: past every `except Exception`."""
    with pytest.raises(BaseException, match="Precompiled") as caught:
        HfTokenizer.from_str(json.dumps(_AT_LOAD))
    assert not isinstance(caught.value, Exception)


def test_a_tokenizer_that_panics_at_load_is_an_invalid_artefact(tmp_path: Path) -> None:
    """As any other file that is no tokenizer; nothing of the panic is told."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(_AT_LOAD))
    with pytest.raises(InvalidArtefact, match=r"^tokenizer.json is not a tokenizer") as caught:
        Tokenizer.from_file(tmp_path / "tokenizer.json", 4)
    assert "borrowed" not in str(caught.value)


def test_a_text_that_the_tokenizer_panics_at_is_an_error_that_names_it() -> None:
    """Among others that it does not; by each way of tokenising."""
    tokenizer = Tokenizer(json.dumps(_AT_ENCODING), 4)
    bad = "a" * 60
    for steps, field in (
        (tokenizer.encode(["b", bad, "c"]), "input[1]"),
        (tokenizer.encode(["b", bad * 1000]), "input[1]"),
        (tokenizer.encode_pairs("b", ["c", bad]), "documents[1]"),
        (tokenizer.encode_pairs(bad, ["c"]), "query"),
        (tokenizer.encode_each(["b", ("c", bad)]), "inputs[1]"),
        (tokenizer.speller.spell(["b", bad], limit=99), "inputs[1]"),
    ):
        with pytest.raises(InvalidInput, match="fails at this text") as caught:
            completed(steps)
        assert caught.value.field == field
        assert "Onig" not in str(caught.value)
    assert completed(tokenizer.encode(["a"])) == [[1]]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
def test_what_ends_the_process_or_the_task_passes(kind: type[BaseException]) -> None:
    """Only a panic becomes an error."""
    with pytest.raises(kind), panics_are_errors():
        raise kind
    with pytest.raises(Panicked), panics_are_errors():
        raise type("PanicException", (BaseException,), {})
