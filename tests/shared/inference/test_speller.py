"""Tokens told one by one, and ids told as text, against the library itself."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import models

from shared.errors import InvalidInput, PayloadTooLarge
from shared.inference.spelling import spelling_of
from shared.inference.steps import completed
from shared.inference.tokenization import Tokenizer
from tests.shared.inference.tokenizers_of_kinds import ALPHABETS, of_kind


def test_a_text_is_spelled_token_by_token_uncut(tokenizer: Tokenizer) -> None:
    """Ids as for embedding; where each stands, in bytes; special tokens by their names."""
    (spelling,) = completed(tokenizer.speller.spell(["a d c b a"], limit=100))
    assert spelling.texts == ["[CLS]", "a", "d", "c", "b", "a", "[SEP]"]
    assert spelling.spans[:, :2].T.tolist() == [[1, 3, 6, 5, 4, 3, 2], [1, 0, 0, 0, 0, 0, 1]]
    assert spelling.spans[1:-1, 2:].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert spelling.spans.dtype == np.int32
    assert len(spelling) == 7


def test_spelling_counts_bytes_and_the_prompt(tokenizer: Tokenizer) -> None:
    """As Text Embeddings Inference does: of the UTF-8 of the prompt and the text together."""
    text = "é \N{GRINNING FACE} a"
    bare, nothing = completed(tokenizer.speller.spell([text, ""], limit=100, special_tokens=False))
    assert bare.texts == ["é", "\N{GRINNING FACE}", "a"]
    assert bare.spans.tolist() == [[0, 0, 0, 2], [0, 0, 3, 7], [3, 0, 8, 9]]
    assert (nothing.texts, nothing.spans.shape) == ([], (0, 4))
    (prompted,) = completed(
        tokenizer.speller.spell([text], limit=100, prefix="ö ", special_tokens=False)
    )
    assert prompted.texts == ["ö", *bare.texts]
    assert prompted.spans[1:, 2:].tolist() == (bare.spans[:, 2:] + 3).tolist()


def test_what_only_looks_special_is_not(tokenizer: Tokenizer) -> None:
    """A text may hold anything: only what the tokenizer adds is special."""
    (spelling,) = completed(tokenizer.speller.spell(["[SEP]"], limit=100, special_tokens=False))
    assert not spelling.spans[:, 1].any()


def test_ids_become_the_text_that_the_library_makes_of_them() -> None:
    """Of WordPiece, byte-level BPE and the like; special tokens only if asked for."""
    for kind in ("MiniLM", "RoBERTa", "XLM-RoBERTa", "Gemma"):
        library = of_kind(kind)
        library.no_truncation()
        tokenizer = Tokenizer(library.to_str(), 8)  # which the texts are longer than
        texts = ["the cat sat on the mat, naïvely", "a", "日本 \N{GRINNING FACE}"]
        ids = [library.encode(text).ids for text in texts]
        for skip in (True, False):
            decoded = completed(tokenizer.speller.decode(ids, limit=10_000, skip_special_tokens=skip))
            assert decoded == [library.decode(each, skip_special_tokens=skip) for each in ids]
        if kind == "MiniLM":
            assert decoded[0] == "[CLS] the cat sat on the mat, naively [SEP]"


@pytest.mark.parametrize("id", [999, -1, 2**31 - 1, 2**32, 2**70])
def test_an_id_that_is_none_is_refused(pairing: Tokenizer, id: int) -> None:
    """The library would leave it out, and the text would look whole."""
    assert len(completed(pairing.speller.decode([[3, 4]], limit=10))) == 1
    with pytest.raises(InvalidInput, match=f"no id {id}$") as caught:
        completed(pairing.speller.decode([[3], [3, id]], limit=10))
    assert caught.value.field == "ids[1]"


def test_more_ids_than_a_request_may_have_are_not_decoded(pairing: Tokenizer) -> None:
    """All texts count, and so does what a text of few ids but long tokens would be."""
    assert len(completed(pairing.speller.decode([[3] * 5, [4] * 5], limit=10))) == 2
    with pytest.raises(PayloadTooLarge, match="11 tokens"):
        completed(pairing.speller.decode([[3] * 5, [4] * 6], limit=10))
    vocabulary = {"[UNK]": 0, "x" * 1000: 1}
    long = Tokenizer(HfTokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")).to_str(), 8)
    assert completed(long.speller.decode([[1]], limit=63)) == ["x" * 1000]
    with pytest.raises(PayloadTooLarge, match="2000 characters"):
        completed(long.speller.decode([[1], [1]], limit=63))


@pytest.mark.parametrize("kind", ["MiniLM", "RoBERTa", "XLM-RoBERTa"])
@pytest.mark.parametrize("special_tokens", [True, False])
def test_a_long_text_is_spelled_in_parts_as_if_whole(kind: str, special_tokens: bool) -> None:
    """Ids, places and texts of several windows of 65,536 characters; byte counts go on."""
    text = "".join(ALPHABETS.values()) * 250
    assert len(text) > 3 * 65_536 // 2
    tokenizer = Tokenizer(of_kind(kind).to_str(), 9)
    (spelling,) = completed(tokenizer.speller.spell([text], limit=10**6, special_tokens=special_tokens))
    whole = spelling_of(text, of_kind(kind).encode(text, add_special_tokens=special_tokens))
    np.testing.assert_array_equal(spelling.spans, whole.spans)
    assert spelling.texts == whole.texts


def test_spelling_ends_at_the_limit() -> None:
    """Of all tokens together, in whichever text it is reached."""
    tokenizer = Tokenizer(of_kind("MiniLM").to_str(), 16)
    assert len(completed(tokenizer.speller.spell(["a b", "c"], limit=7))) == 2
    for texts in (["a b", "c"], ["a b", "c " * 200_000]):
        with pytest.raises(PayloadTooLarge, match=r"at least \d+ tokens, a request may have 6:"):
            completed(tokenizer.speller.spell(texts, limit=6))
