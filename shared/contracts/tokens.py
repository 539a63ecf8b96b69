"""The engine's input: token ids of one text, or of a pair of texts.

Does not know tokenizers or the meaning of an id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class TokenPair:
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


Tokens: TypeAlias = list[int] | TokenPair
"""One input of an engine."""


def is_cut(tokens: Tokens) -> bool:
    """Whether the input was truncated to these tokens."""
    return tokens.is_cut if isinstance(tokens, TokenPair) else isinstance(tokens, CutIds)
