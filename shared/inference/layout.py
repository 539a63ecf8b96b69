"""Where a tokenizer puts special tokens around one text's tokens, or two's. Knows no text."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from tokenizers import Tokenizer

from shared.contracts import TokenPair, TruncationSide
from shared.errors import InvalidArtefact

_PROBES = ("a", "A", "1", ".", "的")
"""Texts tried in turn until the tokenizer knows one as a token, to see what it puts around it."""


class Layout(msgspec.Struct, frozen=True):
    """The special tokens before, between and after, and the type of each text's tokens."""

    around: tuple[TokenPair, ...]
    types: tuple[int, ...]

    @property
    def special_tokens(self) -> int:
        """How many the template adds."""
        return sum(map(len, self.around))

    def place(self, texts: Sequence[Sequence[int]]) -> TokenPair:
        """Each text's ids, with the special tokens."""
        ids, types = [*self.around[0].ids], [*self.around[0].type_ids]
        for text, text_type, special in zip(texts, self.types, self.around[1:], strict=True):
            ids += [*text, *special.ids]
            types += [*[text_type] * len(text), *special.type_ids]
        return TokenPair(ids, types)


def layout_of(tokenizer: Tokenizer, texts: int) -> Layout:
    """Of one text or of two. Raises InvalidArtefact for a tokenizer that does not show it."""
    lengths = {probe: len(tokenizer.encode(probe, add_special_tokens=False)) for probe in _PROBES}
    probe = max(_PROBES, key=lengths.__getitem__)
    encoding = tokenizer.encode(probe, probe if texts == 2 else None)
    ids, types, members = encoding.ids, encoding.type_ids, encoding.sequence_ids
    starts = [members.index(n) if n in members else -1 for n in range(texts)]
    length = lengths[probe]
    edges = [0, *(edge for start in starts for edge in (start, start + length)), len(ids)]
    placed = [member for member in members if member is not None]
    if (
        not length
        or placed != [n for n in range(texts) for _ in range(length)]
        or edges != sorted(edges)
    ):
        raise InvalidArtefact("the tokenizer's post-processor does not place each text once, in order")
    around = [TokenPair(ids[a:b], types[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return Layout(tuple(around), tuple(types[start] for start in starts))


def kept(lengths: tuple[int, int], room: int) -> tuple[int, int]:
    """How many tokens of two texts stay in `room`: the longer loses first, and keeps an odd one.

    >>> kept((3, 9), 7)
    (3, 4)
    >>> kept((9, 8), 7)
    (4, 3)
    """
    if sum(lengths) <= room:
        return lengths
    shorter = min(*lengths, room // 2)
    return (room - shorter, shorter) if lengths[0] > lengths[1] else (shorter, room - shorter)


def cut(ids: list[int], length: int, side: TruncationSide) -> list[int]:
    """Without the end, or the beginning."""
    return ids[:length] if side == "right" else ids[max(0, len(ids) - length) :]
