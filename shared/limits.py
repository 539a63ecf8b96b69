"""How large a request may be, and what is said of one that is larger: before it is tokenised, and after.

Does not know queues: what is refused here can never succeed, however long its caller waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from shared.contracts import Request, RerankRequest, TextInput, texts_of
from shared.errors import PayloadTooLarge

CHARACTERS_PER_TOKEN = 16
"""More than in any language. Beyond it a request is refused unread: tokenising takes 1 s a megabyte."""


def characters_of(request: Request) -> int:
    """What there is to tokenise. A token id counts as its digits, though nothing is done to it."""
    query = len(request.query) if isinstance(request, RerankRequest) else 0
    return query + _characters(texts_of(request))


def check_characters(characters: int, max_tokens: int, field: str) -> None:
    """Raises PayloadTooLarge if so many surely are more than `max_tokens`. field: what has them."""
    if characters > max_tokens * CHARACTERS_PER_TOKEN:
        raise PayloadTooLarge(
            f"the {field} have {characters} characters, far more than the {max_tokens} tokens that a "
            "request may have: send fewer at once",
            field=field,
        )


def check_tokens(tokens: int, max_tokens: int, field: str, *, counted_all: bool = True) -> None:
    """Raises PayloadTooLarge for more than `max_tokens`. counted_all: not if there may be even more."""
    if tokens > max_tokens:
        least = "" if counted_all else "at least "
        raise PayloadTooLarge(
            f"the {field} have {least}{tokens} tokens, a request may have {max_tokens}: "
            "send fewer at once",
            field=field,
        )


def _characters(inputs: Sequence[TextInput | tuple[str, str]]) -> int:
    return sum(len(item) if isinstance(item, str) else sum(map(len, map(str, item))) for item in inputs)
