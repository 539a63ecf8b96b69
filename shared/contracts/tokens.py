"""What an engine reads for one input: token ids of a text, or of a pair of texts.

Does not know tokenizers or what a token stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class TokenPair:
    """Two texts as one sequence. ids: special tokens included; type_ids: 0 or 1, as long as ids.

    is_cut: whether tokens of one of the texts were left out.
    """

    ids: list[int]
    type_ids: list[int]
    is_cut: bool = False

    def __len__(self) -> int:
        return len(self.ids)


class CutIds(list[int]):
    """Ids of a text of which there were more."""

    __slots__ = ()


Tokens: TypeAlias = list[int] | TokenPair
"""What an engine reads for one input."""


def is_cut(tokens: Tokens) -> bool:
    """Whether the input had more tokens than these."""
    return tokens.is_cut if isinstance(tokens, TokenPair) else isinstance(tokens, CutIds)
