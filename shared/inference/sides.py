"""The texts of pairs, and long texts, as tokens without special ones: no more of each than is read.

Does not know how sides are paired, nor what becomes of too long a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import msgspec
from tokenizers import Encoding
from tokenizers import Tokenizer as HfTokenizer

from shared.contracts import TruncationSide
from shared.errors import InputTooLong
from shared.inference.layout import cut
from shared.inference.long_texts import LongTexts, each
from shared.inference.steps import Steps


class Side(msgspec.Struct):
    """One text's tokens without special ones: all in `encoding`, or in `ids` one more than are read.

    at_most: `max_document_tokens`, if it was shortened to that; is_short: whether that cut anything.
    count: how many tokens the whole text has, once known.
    """

    text: str
    encoding: Encoding | None = None
    ids: list[int] = msgspec.field(default_factory=list)
    at_most: int | None = None
    count: int | None = None
    is_short: bool = False

    def __len__(self) -> int:
        return len(self.ids if self.encoding is None else self.encoding)

    def shorten(self, tokens: int, truncation_side: TruncationSide) -> None:
        """Keep at most so many tokens."""
        self.at_most = tokens
        self.is_short = len(self) > tokens
        if self.encoding is None:
            self.ids = cut(self.ids, tokens, truncation_side)
        elif len(self.encoding) > tokens:
            self.encoding.truncate(tokens, direction=truncation_side)


class Sides:
    """Of one tokenizer, which does not truncate. Thread-safe. max_tokens: what the model reads."""

    def __init__(self, tokenizer: HfTokenizer, long: LongTexts, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._long = long
        self._max_tokens = max_tokens

    def read(self, texts: Mapping[str, str], side: TruncationSide) -> Steps[list[Side]]:
        """texts: by the field that errors name. The tokens of each, in order."""
        batch = partial(self._tokenizer.encode_batch_fast, add_special_tokens=False)
        short = {field: text for field, text in texts.items() if not len(text) > self._long.reach}
        long = {field: text for field, text in texts.items() if field not in short}
        made: dict[str, Side] = {}
        if short:
            for field, encoding in zip(short, each(batch, [*short.values()], [*short]), strict=True):
                made[field] = Side(short[field], encoding)
            yield
        if long and side == "right":
            excerpts = yield from self._long.beginnings([*long.values()], [*long])
        else:
            excerpts = []
            for field, text in long.items():
                excerpts.append((yield from self._long.end(text, field)))
        for field, excerpt in zip(long, excerpts, strict=True):
            made[field] = Side(long[field], excerpt.encoding)
            if not excerpt.is_whole or len(excerpt.encoding) > self._max_tokens:
                made[field].count = len(excerpt.encoding) if excerpt.is_whole else None
                made[field].ids = cut(excerpt.encoding.ids, self._max_tokens + 1, side)
                made[field].encoding = None
        return [made[field] for field in texts]

    def count(self, side: Side) -> Steps[int]:
        """How many tokens a text has; where that takes too much, as many as characters."""
        if side.encoding is not None:
            return len(side.encoding)
        if side.count is None:
            try:
                side.count = yield from self._long.count(side.text, "")
            except InputTooLong:
                side.count = len(side.text)
        return side.count if side.at_most is None else min(side.count, side.at_most)
