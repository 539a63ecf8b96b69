"""A tokenizer that truncates, over the vocabulary of one that does not.

Does not know texts, or how many tokens a model reads.
"""

from __future__ import annotations

from tokenizers import Tokenizer

from shared.contracts import TruncationSide

_COMPONENTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def truncating(plain: Tokenizer, max_tokens: int, side: TruncationSide) -> Tokenizer:
    """One that tokenises as `plain` does and keeps at most `max_tokens` of a text.

    They share the vocabulary, which no use of either changes. Parsing the file again would take as long
    as the first time (25 ms for 30,000 words) and the memory once more.
    """
    tokenizer = Tokenizer(plain.model)
    for name in _COMPONENTS:
        if (component := getattr(plain, name)) is not None:
            setattr(tokenizer, name, component)
    # In the order of their ids, which those that are not in the vocabulary get by their turn.
    tokenizer.add_tokens([token for _, token in sorted(plain.get_added_tokens_decoder().items())])
    tokenizer.encode_special_tokens = plain.encode_special_tokens
    tokenizer.enable_truncation(max_tokens, direction=side)
    return tokenizer
