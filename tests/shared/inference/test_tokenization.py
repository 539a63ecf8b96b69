from __future__ import annotations

from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from shared.contracts import TextInput, TokenPair, TruncationSide, is_cut
from shared.errors import BeyondMemory, InputTooLong, InvalidArtefact, InvalidInput
from shared.inference.steps import Steps, completed
from shared.inference.tokenization import Tokenizer
from tests.shared.inference.tokenizers_of_kinds import ALPHABETS, KINDS, of_kind

VOCABULARY = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "c": 5, "d": 6}


def test_long_texts_are_cut_on_the_side_asked_for(tokenizer: Tokenizer) -> None:
    """Special tokens stay; the text loses its end or its beginning."""
    assert completed(tokenizer.encode(["a b c d"])) == [[1, 3, 4, 2]]
    assert completed(tokenizer.encode(["a b c d"], side="left")) == [[1, 5, 6, 2]]


def test_without_truncation_a_long_text_is_an_error_that_names_it(tokenizer: Tokenizer) -> None:
    """The second input is the long one."""
    with pytest.raises(InputTooLong, match="6 tokens, the model reads 4") as caught:
        completed(tokenizer.encode(["a", "a b c d"], truncate=False))
    assert caught.value.field == "input[1]"


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(
    ("method", "arguments", "field"),
    [
        ("encode", (["a b c d", "a b c d e f g h"],), "input[1]"),
        ("encode", (["a", (3,) * 9],), "input[1]"),
        ("encode_pairs", ("a", ["b c", "b c d e f g h"]), "documents[1]"),
        ("encode_each", (["a", ("a b c", "d e f")],), "inputs[1]"),
    ],
)
def test_what_there_is_no_memory_for_is_refused_and_not_cut(
    pairing: Tokenizer, method: str, arguments: tuple[Any, ...], field: str, truncate: bool
) -> None:
    """The model reads eight tokens and there is memory for six: six pass, whether or not it cuts."""
    small = Tokenizer(pairing._for_side(None).to_str(), 8, 6)
    with pytest.raises(BeyondMemory, match=r"\d tokens.* 6 of the 8") as caught:
        completed(getattr(small, method)(*arguments, truncate=truncate))
    assert caught.value.field == field
    (spelling,) = completed(small.speller.spell(["a b c d e f g h"], limit=100))
    assert len(spelling) == 10  # no engine runs it


def test_ids_are_taken_as_they_are_between_texts(tokenizer: Tokenizer) -> None:
    """Order is kept when texts and ids are mixed; ids are cut like texts."""
    assert completed(tokenizer.encode(["a", (6, 5, 4, 3, 3), "b"])) == [
        [1, 3, 2],
        [6, 5, 4, 3],
        [1, 4, 2],
    ]
    assert completed(tokenizer.encode([(6, 5, 4, 3, 3)], side="left")) == [[5, 4, 3, 3]]


def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    """An id of another vocabulary must not reach the embedding table."""
    with pytest.raises(InvalidInput, match="between 0 and 6") as caught:
        completed(tokenizer.encode([(1, 7)]))
    assert caught.value.field == "input[0]"


def test_a_prompt_is_put_before_texts_only(tokenizer: Tokenizer) -> None:
    """Ids carry their own prompt, if any."""
    assert completed(tokenizer.encode(["b", (4,)], prefix="a ")) == [[1, 3, 4, 2], [4]]


def test_a_pair_is_query_then_document_with_their_types(pairing: Tokenizer) -> None:
    """Ids and types are what the tokenizer itself gives for the pair."""
    short, long = completed(pairing.encode_pairs("a b", ["c", "c d c d c d"]))
    assert short == TokenPair([1, 3, 4, 2, 5, 2], [0, 0, 0, 0, 1, 1])
    # One token of the query would only go once the document is as short.
    assert long == TokenPair([1, 3, 4, 2, 5, 6, 5, 2], [0, 0, 0, 0, 1, 1, 1, 1], is_cut=True)


def test_pairs_are_those_of_the_tokenizer_itself(pairing: Tokenizer) -> None:
    """Each text tokenised once and joined equals encoding the pair, truncation included."""
    query, documents = "a b c d a", ["", "a", "b c d", "d c b a d c b a"]
    together = completed(pairing.encode_each([(query, document) for document in documents]))
    assert completed(pairing.encode_pairs(query, documents)) == together
    left = completed(pairing.encode_each([(query, document) for document in documents], side="left"))
    assert completed(pairing.encode_pairs(query, documents, side="left")) == left
    assert left != together


def test_documents_can_be_cut_before_pairing(pairing: Tokenizer) -> None:
    """The query keeps its tokens; the side is the one asked for."""
    assert completed(pairing.encode_pairs("a", ["b c d"], max_document_tokens=1))[0].ids == [
        1,
        3,
        2,
        4,
        2,
    ]
    left = completed(pairing.encode_pairs("a", ["b c d"], max_document_tokens=1, side="left"))
    assert left[0].ids == [1, 3, 2, 6, 2]


def test_without_truncation_a_long_pair_is_an_error_that_names_it(pairing: Tokenizer) -> None:
    """The second document is the long one."""
    with pytest.raises(InputTooLong, match="the model reads 8") as caught:
        completed(pairing.encode_pairs("a b", ["c", "c d c d c d"], truncate=False))
    assert caught.value.field == "documents[1]"


def test_texts_and_pairs_can_be_mixed(pairing: Tokenizer) -> None:
    """A text is plain ids, a pair has types."""
    assert completed(pairing.encode_each(["a", ("a", "b")])) == [
        [1, 3, 2],
        TokenPair([1, 3, 2, 4, 2], [0] * 3 + [1] * 2),
    ]


def test_a_broken_file_is_an_invalid_artefact(tmp_path: Path) -> None:
    """The error names the file, not its folder."""
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidArtefact, match=r"^tokenizer.json is not"):
        Tokenizer.from_file(tmp_path / "tokenizer.json", 4)


_LONG = {
    **{name: text * (20_000 // len(text)) for name, text in ALPHABETS.items()},
    "mixed": "".join(ALPHABETS.values()) * 30,
    "marks in a row": "!" * 20_000,
    "one word": "a" * 20_000,
    "one word, then others": "a" * 9_000 + " b c" * 3_000,
    "special tokens": "[SEP] <mask> " * 1_500,
    "spaces": " " * 20_000,
    "expanding": "\ufdfa " * 4_000,
}


@cache
def _whole(kind: str, text: str) -> list[int]:
    return of_kind(kind).encode(text, add_special_tokens=False).ids


def _truth(kind: str, text: str, pair: str | None, max_tokens: int, side: TruncationSide) -> list[int]:
    """The whole text's tokens, truncated afterwards: one by one from the longer, from the shorter first
    once they are equal."""
    special = of_kind(kind).encode("", pair and "").ids
    ids = [_whole(kind, one) for one in (text, pair) if one is not None]
    lengths = [len(one) for one in ids]
    by_length = sorted(range(len(ids)), key=lambda n: (lengths[n], n))  # of equals the second is longer
    while sum(lengths) > max_tokens - len(special):
        lengths[max(by_length, key=lambda n: lengths[n])] -= 1
    ids = [
        one[:length] if side == "right" else one[len(one) - length :]
        for one, length in zip(ids, lengths, strict=True)
    ]
    return [*special[:1], *ids[0], *special[1:-1], *(ids[1] if pair else []), *special[1:][-1:]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_long_text_s_part_has_the_whole_s_tokens(kind: str, side: TruncationSide) -> None:
    """Of all alphabets, whether a place to cut is found or not."""
    tokenizer = Tokenizer(of_kind(kind).to_str(), max_tokens=9)
    encoded = completed(tokenizer.encode([*_LONG.values()], side=side))
    for name, ids in zip(_LONG, encoded, strict=True):
        assert ids == _truth(kind, _LONG[name], None, 9, side), name


@pytest.mark.parametrize("kind", ["MiniLM", "RoBERTa", "XLM-RoBERTa", "Gemma"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_tokens", [12, 13])
def test_long_pairs_have_the_wholes_tokens(kind: str, side: TruncationSide, max_tokens: int) -> None:
    """Also which of two long texts keeps the odd token: the one that is longer as a whole."""
    tokenizer = Tokenizer(of_kind(kind).to_str(), max_tokens)
    others = [text[:5_000] for text in list(_LONG.values())[:6]]
    texts = ["a b c", "word " * 1_000, "word " * 1_001, *others, "x y " * 80]
    for query in texts[:4]:
        pairs = completed(tokenizer.encode_pairs(query, texts, side=side))
        each = completed(tokenizer.encode_each([(query, text) for text in texts], side=side))
        for text, pair, same in zip(texts, pairs, each, strict=True):
            assert pair.ids == _truth(kind, query, text, max_tokens, side), (query[:9], text[:9])
            if len(text) > 1_000 or len(query) > 1_000:  # the library's own way has its own odd token
                assert same == pair


def test_a_long_document_is_cut_before_pairing() -> None:
    """To fewer tokens than the pair may have, and to more."""
    tokenizer = Tokenizer(of_kind("MiniLM").to_str(), 16)
    document = "one two three " * 2_000
    for most in (3, 12, 40):
        (pair,) = completed(tokenizer.encode_pairs("four", [document], max_document_tokens=most))
        cut = " ".join(document.split()[:most])
        assert pair.ids == _truth("MiniLM", "four", cut, 16, "right")


def test_a_text_that_cannot_be_cut_is_refused_by_its_size() -> None:
    """Rather than taken whole, and before it is: of 1 MB that are one word."""
    tokenizer = Tokenizer(of_kind("MiniLM").to_str(), 16)
    text = "a" * 1_000_000
    for options in ({}, {"truncate": False}, {"side": "left"}):
        with pytest.raises(InputTooLong, match=r"has 1000000 characters .* it takes 262416") as caught:
            completed(tokenizer.encode(["b", text], **options))
        assert caught.value.field == "input[1]"


def test_an_expanding_text_counts_as_what_it_becomes() -> None:
    """One character of 18, of which 100,000 would be 1.8 million."""
    tokenizer = Tokenizer(of_kind("WordLevel").to_str(), 16)
    with pytest.raises(InputTooLong, match="has 100000 characters"):
        completed(tokenizer.encode(["\ufdfa" * 100_000]))


def test_what_cannot_fit_is_refused_from_its_beginning() -> None:
    """Without truncation, of one long text and of a pair, without the count of all."""
    tokenizer = Tokenizer(of_kind("MiniLM").to_str(), 16)
    text = "word " * 10**6
    refused: list[Steps[Any]] = [
        tokenizer.encode([text], truncate=False),
        tokenizer.encode_pairs("a", [text], truncate=False),
        tokenizer.encode_each([("a", text)], truncate=False),
    ]
    for steps in refused:
        with pytest.raises(InputTooLong, match="more than 16 tokens, the model reads 16"):
            list(islice(steps, 5))


def test_work_is_done_in_steps_of_bounded_size() -> None:
    """A request of much text can be left between any two of its steps."""
    tokenizer = Tokenizer(of_kind("MiniLM").to_str(), 16)
    texts = ["word " * 100] * 1_000
    assert len(list(tokenizer.encode(texts))) == pytest.approx(500_000 / 65_536, abs=1)
    pairs = [("word " * 100, "b")] * 1_000
    assert len(list(tokenizer.encode_each(pairs))) == pytest.approx(500_000 / 65_536, abs=1)


def test_what_was_cut_is_marked_exactly(pairing: Tokenizer) -> None:
    """At the limit nothing is; one token more is; so are long texts, ids, and either side."""
    room = pairing.max_tokens - 2
    fits, over, long = "a " * room, "a " * (room + 1), "a " * 5000
    texts: list[TextInput] = [
        fits,
        over,
        long,
        (3,) * pairing.max_tokens,
        (3,) * (pairing.max_tokens + 1),
    ]
    for side in ("right", "left"):
        encoded = completed(pairing.encode(texts, side=side))
        assert [is_cut(tokens) for tokens in encoded] == [False, True, True, False, True]


def test_pairs_of_which_a_text_was_cut_are_marked(pairing: Tokenizer) -> None:
    """Whichever of the two it was, and however long; and a document that is cut before it is paired."""
    room = pairing.max_tokens - 3 - 1
    documents = ["a " * room, "a " * (room + 1), "a " * 5000]
    pairs = completed(pairing.encode_pairs("b", documents))
    assert [is_cut(pair) for pair in pairs] == [False, True, True]
    (pair,) = completed(pairing.encode_pairs("b " * 5000, ["a"]))
    assert is_cut(pair)
    shortened = completed(pairing.encode_pairs("b", ["a", "a a"], max_document_tokens=1))
    assert [is_cut(pair) for pair in shortened] == [False, True]
    mixed: list[str | tuple[str, str]] = [("b", text) for text in documents]
    mixed += ["a " * (room + 2), "a " * (room + 3)]
    each = completed(pairing.encode_each(mixed))
    assert [is_cut(tokens) for tokens in each] == [False, True, True, False, True]
