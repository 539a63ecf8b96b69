"""Truncating tokenizers: the same as one that is read from the file and told to truncate."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from shared.contracts import TruncationSide
from shared.inference.truncating import truncating
from tests.shared.inference.tokenizers_of_kinds import ALPHABETS, KINDS, of_kind

_TEXTS = [*ALPHABETS.values(), "[MASK] <extra> two<extra>three"]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_file_gives(kind: str, side: TruncationSide) -> None:
    """Whole: components, vocabulary, and added tokens with their ids, one of them new."""
    file = Tokenizer.from_str(of_kind(kind).to_str())
    file.add_tokens(["<extra>"])
    plain, expected = (Tokenizer.from_str(file.to_str()) for _ in range(2))
    plain.no_truncation()
    expected.enable_truncation(9, direction=side)
    found = truncating(plain, 9, side)
    assert found.to_str() == expected.to_str()
    for text in _TEXTS:
        assert found.encode(text).ids == expected.encode(text).ids


def test_the_plain_one_stays_plain() -> None:
    """They share a vocabulary, not the truncation."""
    plain = Tokenizer.from_str(of_kind("MiniLM").to_str())
    plain.no_truncation()
    truncating(plain, 3, "right")
    assert plain.truncation is None
    assert len(plain.encode("a b c d e f")) == 8
