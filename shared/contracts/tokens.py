"""The engine's input: token ids of one text, or of a pair of texts.

Does not know tokenizers or the meaning of an id.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import msgspec


class TokenPair(msgspec.Struct, frozen=True):
    """Two texts as one sequence of T tokens.

    ids: T ids, special tokens included. type_ids: T values, 0 or 1: which text a token belongs to.
    is_cut: whether the pair was truncated.
    """

    ids: list[int]
    type_ids: list[int]
    is_cut: bool = False

    def __len__(self) -> int:
        return len(self.ids)


class CutIds(list[int]):
    """Ids of a text that was truncated."""

    __slots__ = ()


class LateIds(list[int]):
    """Ids of a query or document of a multi-vector model.

    attended: so many of them, from the first on, are attended to. skipped: whether those that the model
    skips get no vector. is_cut: whether the text was truncated.
    """

    __slots__ = ("attended", "is_cut", "skipped")

    def __init__(self, ids: Iterable[int], *, attended: int, skipped: bool, is_cut: bool) -> None:
        super().__init__(ids)
        self.attended = attended
        self.skipped = skipped
        self.is_cut = is_cut


Tokens: TypeAlias = list[int] | TokenPair
"""One input of an engine."""


def is_cut(tokens: Tokens) -> bool:
    """Whether the input was truncated to these tokens."""
    if isinstance(tokens, TokenPair | LateIds):
        return tokens.is_cut
    return isinstance(tokens, CutIds)
