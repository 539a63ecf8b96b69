"""Tokenizers of a few words each."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import models, pre_tokenizers, processors

from shared.inference.tokenization import Tokenizer

VOCABULARY = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "c": 5, "d": 6}


@pytest.fixture
def tokenizer() -> Tokenizer:
    hf = HfTokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    hf.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return Tokenizer(hf.to_str(), max_tokens=4)


@pytest.fixture
def pairing() -> Tokenizer:
    """As above, for pairs of at most eight tokens."""
    hf = HfTokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    hf.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return Tokenizer(hf.to_str(), max_tokens=8)
