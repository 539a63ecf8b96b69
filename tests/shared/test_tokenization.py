from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import models, pre_tokenizers, processors

from shared.contracts import TokenPair
from shared.errors import BeyondMemory, InputTooLong, InvalidArtefact, InvalidInput
from shared.tokenization import Tokenizer

VOCABULARY = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "c": 5, "d": 6}


@pytest.fixture
def tokenizer() -> Tokenizer:
    hf = HfTokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    hf.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return Tokenizer(hf.to_str(), max_tokens=4)


def test_long_texts_are_cut_on_the_side_asked_for(tokenizer: Tokenizer) -> None:
    """Special tokens stay; the text loses its end or its beginning."""
    assert tokenizer.encode(["a b c d"]) == [[1, 3, 4, 2]]
    assert tokenizer.encode(["a b c d"], side="left") == [[1, 5, 6, 2]]


def test_without_truncation_a_long_text_is_an_error_that_names_it(tokenizer: Tokenizer) -> None:
    """The second input is the long one."""
    with pytest.raises(InputTooLong, match="6 tokens, the model reads 4") as caught:
        tokenizer.encode(["a", "a b c d"], truncate=False)
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
    small = Tokenizer(pairing._serialized, 8, 6)
    with pytest.raises(BeyondMemory, match=r"\d tokens.* 6 of the 8") as caught:
        getattr(small, method)(*arguments, truncate=truncate)
    assert caught.value.field == field
    assert len(small.spell(["a b c d e f g h"])[0]) == 10  # no engine runs it


def test_ids_are_taken_as_they_are_between_texts(tokenizer: Tokenizer) -> None:
    """Order is kept when texts and ids are mixed; ids are cut like texts."""
    assert tokenizer.encode(["a", (6, 5, 4, 3, 3), "b"]) == [[1, 3, 2], [6, 5, 4, 3], [1, 4, 2]]
    assert tokenizer.encode([(6, 5, 4, 3, 3)], side="left") == [[5, 4, 3, 3]]


def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    """An id of another vocabulary must not reach the embedding table."""
    with pytest.raises(InvalidInput, match="between 0 and 6") as caught:
        tokenizer.encode([(1, 7)])
    assert caught.value.field == "input[0]"


def test_a_prompt_is_put_before_texts_only(tokenizer: Tokenizer) -> None:
    """Ids carry their own prompt, if any."""
    assert tokenizer.encode(["b", (4,)], prefix="a ") == [[1, 3, 4, 2], [4]]


def test_a_text_is_spelled_token_by_token_uncut(tokenizer: Tokenizer) -> None:
    """Ids as for embedding; where each stands, in bytes; special tokens by their names."""
    (spelling,) = tokenizer.spell(["a d c b a"])
    assert spelling.texts == ["[CLS]", "a", "d", "c", "b", "a", "[SEP]"]
    assert spelling.spans[:, :2].T.tolist() == [[1, 3, 6, 5, 4, 3, 2], [1, 0, 0, 0, 0, 0, 1]]
    assert spelling.spans[1:-1, 2:].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert spelling.spans.dtype == np.int32
    assert len(spelling) == 7


def test_spelling_counts_bytes_and_the_prompt(tokenizer: Tokenizer) -> None:
    """As Text Embeddings Inference does: of the UTF-8 of the prompt and the text together."""
    text = "é \N{GRINNING FACE} a"
    bare, nothing = tokenizer.spell([text, ""], special_tokens=False)
    assert bare.texts == ["é", "\N{GRINNING FACE}", "a"]
    assert bare.spans.tolist() == [[0, 0, 0, 2], [0, 0, 3, 7], [3, 0, 8, 9]]
    assert (nothing.texts, nothing.spans.shape) == ([], (0, 4))
    (prompted,) = tokenizer.spell([text], prefix="ö ", special_tokens=False)
    assert prompted.texts == ["ö", *bare.texts]
    assert prompted.spans[1:, 2:].tolist() == (bare.spans[:, 2:] + 3).tolist()


def test_what_only_looks_special_is_not(tokenizer: Tokenizer) -> None:
    """A text may hold anything: only what the tokenizer adds is special."""
    (spelling,) = tokenizer.spell(["[SEP]"], special_tokens=False)
    assert not spelling.spans[:, 1].any()


@pytest.fixture
def pairing() -> Tokenizer:
    """As above, for pairs of at most eight tokens."""
    hf = HfTokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    hf.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return Tokenizer(hf.to_str(), max_tokens=8)


def test_a_pair_is_query_then_document_with_their_types(pairing: Tokenizer) -> None:
    """Ids and types are what the tokenizer itself gives for the pair."""
    short, long = pairing.encode_pairs("a b", ["c", "c d c d c d"])
    assert short == TokenPair([1, 3, 4, 2, 5, 2], [0, 0, 0, 0, 1, 1])
    # One token of the query would only go once the document is as short.
    assert long == TokenPair([1, 3, 4, 2, 5, 6, 5, 2], [0, 0, 0, 0, 1, 1, 1, 1])


def test_pairs_are_those_of_the_tokenizer_itself(pairing: Tokenizer) -> None:
    """Each text tokenised once and joined equals encoding the pair, truncation included."""
    query, documents = "a b c d a", ["", "a", "b c d", "d c b a d c b a"]
    together = pairing.encode_each([(query, document) for document in documents])
    assert pairing.encode_pairs(query, documents) == together
    left = pairing.encode_each([(query, document) for document in documents], side="left")
    assert pairing.encode_pairs(query, documents, side="left") == left
    assert left != together


def test_documents_can_be_cut_before_pairing(pairing: Tokenizer) -> None:
    """The query keeps its tokens; the side is the one asked for."""
    assert pairing.encode_pairs("a", ["b c d"], max_document_tokens=1)[0].ids == [1, 3, 2, 4, 2]
    left = pairing.encode_pairs("a", ["b c d"], max_document_tokens=1, side="left")
    assert left[0].ids == [1, 3, 2, 6, 2]


def test_without_truncation_a_long_pair_is_an_error_that_names_it(pairing: Tokenizer) -> None:
    """The second document is the long one."""
    with pytest.raises(InputTooLong, match="the model reads 8") as caught:
        pairing.encode_pairs("a b", ["c", "c d c d c d"], truncate=False)
    assert caught.value.field == "documents[1]"


def test_texts_and_pairs_can_be_mixed(pairing: Tokenizer) -> None:
    """A text is plain ids, a pair has types."""
    assert pairing.encode_each(["a", ("a", "b")]) == [
        [1, 3, 2],
        TokenPair([1, 3, 2, 4, 2], [0] * 3 + [1] * 2),
    ]


def test_a_broken_file_is_an_invalid_artefact(tmp_path: Path) -> None:
    """The error names the file, not its folder."""
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidArtefact, match=r"^tokenizer.json is not"):
        Tokenizer.from_file(tmp_path / "tokenizer.json", 4)
