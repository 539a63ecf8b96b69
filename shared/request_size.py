"""How large a request is, by estimate, and how large it may be: before it is tokenised, and after.

Does not know queues: what is refused here can never succeed, however long its caller waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shared.contracts import AnyRequest, DecodeRequest, RerankRequest, TextInput, TokenizeRequest
from shared.errors import PayloadTooLarge

BYTES_PER_TOKEN = 4
TOKENS_PER_TEXT = 2
"""English takes about four bytes a token in WordPiece or BPE; the two are [CLS] and [SEP]."""

MAX_NUMBERS = 33_554_432
"""In an answer whose inputs have many vectors, or words: 134 MB of float32, 262,144 tokens' vectors of
128 dimensions."""

CHARACTERS_PER_TOKEN = 16
"""More than in any language. Beyond it a request is refused unread: tokenising takes 1 s a megabyte."""


def characters_of(request: AnyRequest) -> int:
    """Characters to tokenise. A token id counts as its digits, though it is not tokenised.

    Of a DecodeRequest each id counts as one.
    """
    if isinstance(request, DecodeRequest):
        return sum(map(len, request.inputs))
    query = len(request.query) if isinstance(request, RerankRequest) else 0
    return query + _characters(request.texts)


def check_characters(characters: int, max_tokens: int, field: str) -> None:
    """Raises PayloadTooLarge if so many must be more than `max_tokens`. field: what has them."""
    if characters > max_tokens * CHARACTERS_PER_TOKEN:
        raise PayloadTooLarge(
            f"the {field} have {characters} characters, far more than the {max_tokens} tokens that a "
            "request may have: send fewer at once",
            field=field,
        )


def check_tokens(tokens: int, max_tokens: int, field: str, *, counted_all: bool = True) -> None:
    """Raises PayloadTooLarge for more than `max_tokens`. counted_all: False if there may be more."""
    if tokens > max_tokens:
        least = "" if counted_all else "at least "
        raise PayloadTooLarge(
            f"the {field} have {least}{tokens} tokens, a request may have {max_tokens}: "
            "send fewer at once",
            field=field,
        )


def check_numbers(numbers: int, field: str) -> None:
    """Raises PayloadTooLarge for an answer of more than MAX_NUMBERS."""
    if numbers > MAX_NUMBERS:
        raise PayloadTooLarge(
            f"the answer to the {field} would have {numbers} numbers, and one may have {MAX_NUMBERS}: "
            "send fewer at once",
            field=field,
        )


def _characters(inputs: Sequence[TextInput | tuple[str, str]]) -> int:
    return sum(len(item) if isinstance(item, str) else sum(map(len, map(str, item))) for item in inputs)


def estimate_request(request: AnyRequest, *, paired: bool, max_tokens: int | None) -> int:
    """Tokens that a model is fed. paired: it reads a query with each document, and not by itself.

    max_tokens: what the model reads of a text or pair; None: not known.
    """
    if isinstance(request, TokenizeRequest | DecodeRequest):
        return estimate_tokens(request.inputs)  # these are not cut to what the model reads
    texts, query = request.texts, ""
    if isinstance(request, RerankRequest):
        query = request.query
        if not paired:
            texts, query = (query, *texts), ""
    return estimate_tokens(texts, query=query, max_tokens=max_tokens)


def estimate_tokens(
    texts: Iterable[TextInput | tuple[str, str]], *, query: str = "", max_tokens: int | None = None
) -> int:
    """Tokens of texts, pairs of texts or lists of ids, without a tokenizer. O(1) for ASCII texts.

    query: read with each of them. max_tokens: more are not read of any.

    About right for English, and for other alphabets with a vocabulary made for them. Too low for code
    and digits, by up to half; for Chinese, Japanese and Korean, by a quarter (three bytes, one token a
    character); for scripts that the vocabulary lacks, by up to four times (byte-level BPE).
    """
    total = 0
    beside = TOKENS_PER_TEXT + (TOKENS_PER_TEXT + _tokens(query) if query else 0)
    for item in texts:
        parts = (item,) if isinstance(item, str) else item
        tokens = beside + sum(_tokens(part) if isinstance(part, str) else 1 for part in parts)
        total += tokens if max_tokens is None else min(tokens, max_tokens)
    return total


def _tokens(text: str) -> int:
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size // BYTES_PER_TOKEN)
