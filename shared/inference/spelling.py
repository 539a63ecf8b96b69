"""A text's tokens with where each stands in it. Does not know limits or how a text was cut for it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from tokenizers import Encoding

from shared.contracts import IntMatrix


class Spelling(msgspec.Struct, frozen=True):
    """The tokens of one text. spans: (T, 4) int32, texts: T of them, both as in TokenizeResult."""

    spans: IntMatrix
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def between(self, first: int, last: int) -> Spelling:
        """Tokens `first` to before `last`."""
        return Spelling(self.spans[first:last], self.texts[first:last])

    def moved(self, by: int) -> Spelling:
        """In a text that has so many bytes before it."""
        return Spelling(self.spans + np.array([0, 0, by, by], np.int32), self.texts)


def spelling_of(text: str, encoding: Encoding) -> Spelling:
    """Of a whole text's encoding, with character offsets."""
    offsets, special = encoding.offsets, encoding.special_tokens_mask
    byte_at = np.cumsum([0, *(len(character.encode()) for character in text)])
    bytes_of = byte_at[np.array(offsets, np.intp).reshape(-1, 2)]
    spans = np.column_stack((encoding.ids, special, bytes_of)).astype(np.int32)
    named = zip(encoding.tokens, special, offsets, strict=True)
    return Spelling(spans, [name if is_special else text[slice(*at)] for name, is_special, at in named])


def joined(spellings: Sequence[Spelling]) -> Spelling:
    """One text's spellings, at least one, in order, as one."""
    return Spelling(
        np.concatenate([spelling.spans for spelling in spellings]),
        [text for spelling in spellings for text in spelling.texts],
    )


def special_around(spelling: Spelling) -> tuple[Spelling, Spelling]:
    """The special tokens before and after all others."""
    special = spelling.spans[:, 1].tolist()
    before = special.index(0) if 0 in special else len(special)
    after = special[::-1].index(0) if 0 in special else 0
    return spelling.between(0, before), spelling.between(len(special) - after, len(special))
