"""A cut is where it may be: against the whole text's tokens, of every kind of tokenizer and alphabet."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.inference.cuts import Cuts
from tests.shared.inference.tokenizers_of_kinds import ALPHABETS, KINDS, of_kind

_PIECES = [piece for text in ALPHABETS.values() for piece in (text, *text.split(), *text[::3], text * 5)]
_pieces = st.sampled_from([*_PIECES, " ", "   ", "\n", "a" * 150, "!" * 90, "12" * 60, "\u0301" * 40])
_texts = st.lists(
    st.one_of(_pieces, st.text(max_size=12).filter(lambda text: text.isprintable())),
    min_size=5,
    max_size=120,
).map("".join)


@cache
def cuts_of(kind: str) -> Cuts:
    tokenizer = of_kind(kind)
    return Cuts(tokenizer.to_str(), tokenizer)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=_texts, share=st.floats(0.2, 1))
def test_what_is_settled_are_the_whole_text_s_first_tokens(kind: str, text: str, share: float) -> None:
    """However much more is asked for, up to where it is denied."""
    tokenizer, cuts = of_kind(kind), cuts_of(kind)
    end = cuts.end_before(text, int(len(text) * share))
    if end is None:
        return
    encoding = tokenizer.encode(text[:end], add_special_tokens=False)
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    for wanted in range(len(encoding), 0, -1 - len(encoding) // 50):
        if cuts.are_settled(encoding, wanted):
            assert encoding.ids[:wanted] == whole[:wanted]
            return


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=_texts, share=st.floats(0, 0.8))
def test_tokens_from_a_word_s_end_are_the_whole_text_s_last(kind: str, text: str, share: float) -> None:
    """Or it is denied that they are."""
    tokenizer, cuts = of_kind(kind), cuts_of(kind)
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    starts = list(islice(cuts.word_ends(text, int(len(text) * share)), 12))
    for begin, start in pairwise(starts):
        encoding = tokenizer.encode(text[begin:], add_special_tokens=False)
        first = cuts.first_token_from(encoding, start - begin)
        if first is not None:
            assert encoding.ids[first:] == whole[len(whole) - len(encoding) + first :]


_TEXTS = {"words": "word " * 400, "marks": "!" * 2000, "no spaces": ALPHABETS["thai"] * 40}
_DENIED = {
    # Of one word that is as long as the text, and may be a longer one's beginning.
    "no spaces": ("MiniLM", "reranker", "WordPiece", "WordPiece, cased", "WordLevel"),
    # Tokens of several marks, in an order that the run's end may decide.
    "marks": (
        *("WordLevel", "RoBERTa", "Llama 3", "GPT-4o", "CLIP", "XLM-RoBERTa", "T5"),
        *("Llama 2", "Gemma", "Mistral"),
    ),
    "words": (),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", _TEXTS)
def test_a_cut_is_found_where_there_is_one(text: str, kind: str) -> None:
    """Of words always; denied only where a longer text could change the tokens."""
    tokenizer, cuts = of_kind(kind), cuts_of(kind)
    end = cuts.end_before(_TEXTS[text], 1200)
    assert end is not None
    encoding = tokenizer.encode(_TEXTS[text][:end], add_special_tokens=False)
    assert cuts.are_settled(encoding, 20) == (kind not in _DENIED[text])


def test_no_cut_is_inside_an_added_token() -> None:
    """Of which the beginning alone would be other tokens."""
    cuts = cuts_of("MiniLM")
    text = "word " * 200 + "[SEP] " * 200
    ends = {cuts.end_before(text, at) for at in range(1_000, 1_500)}
    found = {end for end in ends if end is not None}
    assert {text[end - 1] for end in found} == {"d"}


_UNKNOWN: dict[str, Callable[[dict[str, Any]], object]] = {
    "a normalizer": lambda components: components.update(normalizer={"type": "FromTheFuture"}),
    "a pre-tokenizer": lambda components: components.update(pre_tokenizer={"type": "UnicodeScripts"}),
    "a model": lambda components: components["model"].update(type="FromTheFuture"),
    "a model without a type": lambda components: components["model"].pop("type"),
    "dropout": lambda components: components["model"].update(dropout=0.5),
}


@pytest.mark.parametrize("unknown", _UNKNOWN)
@pytest.mark.parametrize("kind", ["MiniLM", "Llama 3"])
def test_of_an_unknown_part_nothing_is_said(kind: str, unknown: str) -> None:
    """Neither of beginnings nor of ends: a text is then read as a whole, or refused."""
    tokenizer = of_kind(kind)
    components = json.loads(tokenizer.to_str())
    _UNKNOWN[unknown](components)
    cuts = Cuts(json.dumps(components), tokenizer)
    text = "word " * 400
    assert cuts.end_before(text, 1200) is None
    assert cuts.word_end_before(text, 1200) is None
    assert list(cuts.word_ends(text, 1200)) == []
