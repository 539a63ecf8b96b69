"""Tokens of a long text's beginning, end or windows: only what is wanted, in memory that it decides.

Knows one tokenizer; does not know special tokens, pairs or what becomes of too long a text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

import msgspec
from tokenizers import Encoding
from tokenizers import Tokenizer as HfTokenizer

from shared.engines.panics import is_panic
from shared.errors import InputTooLong, InvalidInput
from shared.inference.cuts import Cuts
from shared.inference.steps import Steps

SLICE_CHARACTERS = 65_536
"""Characters that one step gives the library, at most, unless one window needs more."""

_CHARACTERS_PER_TOKEN = 8
"""How many are tried first for each token that is wanted: enough in most languages."""

_WHOLE_CHARACTERS = 262_144
"""A text of no more, and 16 for each token that is wanted, is tokenised as a whole where nothing proves
that an excerpt will do. Takes 60 to 500 bytes a character."""

_CONTEXT = 512
"""Characters before a window of a long text, so that it does not begin the text for the tokenizer."""

T = TypeVar("T")
R = TypeVar("R")
Key = TypeVar("Key", bound=int | str)
Item = TypeVar("Item", str, tuple[str, str])


class Excerpt(msgspec.Struct):
    """The tokens of a text's beginning, of its end or of all of it, without special ones.

    is_whole: whether they are all of them.
    """

    encoding: Encoding
    is_whole: bool


class LongTexts:
    """Of one tokenizer, which does not truncate. Thread-safe.

    All raise InvalidInput for a text that the library fails at, and InputTooLong for one that would have
    to be tokenised as a whole and is too long for that; `field` is what both name.
    """

    def __init__(self, tokenizer: HfTokenizer, cuts: Cuts, wanted: int) -> None:
        """wanted: how many tokens of each text the caller needs."""
        self._tokenizer = tokenizer
        self._cuts = cuts
        self._wanted = wanted
        self._whole_characters = _WHOLE_CHARACTERS + 16 * wanted
        self.reach = _CHARACTERS_PER_TOKEN * wanted + _CONTEXT
        """Texts of no more characters are not long."""

    def beginnings(self, texts: Sequence[str], fields: Sequence[str]) -> Steps[list[Excerpt]]:
        """Of each text the whole, or at least its first `wanted` tokens and others behind them."""
        ends = [self._cuts.end_before(text, self.reach) for text in texts]
        shorter = [text[: end or 0] for text, end in zip(texts, ends, strict=True)]
        encodings = each(
            partial(self._tokenizer.encode_batch, add_special_tokens=False), shorter, fields
        )
        yield
        excerpts = []
        for text, end, encoding, field in zip(texts, ends, encodings, fields, strict=True):
            if end is not None and self._cuts.are_settled(encoding, self._wanted):
                excerpts.append(Excerpt(encoding, is_whole=False))
            else:
                excerpts.append((yield from self._beginning(text, field)))
        return excerpts

    def end(self, text: str, field: str) -> Steps[Excerpt]:
        """The whole, or at least the last `wanted` tokens, and others before them."""
        reach = self.reach
        while reach < len(text) and reach <= self._whole_characters:
            encoding = self._end_within(text, reach, field)
            yield
            if encoding is not None:
                return Excerpt(encoding, is_whole=False)
            reach *= 4
        return self._whole(text, field)

    def windows(self, text: str, field: str) -> Iterator[tuple[Encoding, int, int]]:
        """All of it: the tokens of each window, the first that counts, the window's first character."""
        begin = start = 0
        stop: int | None = 0
        while stop is not None:
            stop = self._window_end(text, start)
            window = text[begin:stop]
            self._check_whole(window, field)
            encoding = self._encode(window, field)
            first = self._cuts.first_token_from(encoding, start - begin) if start else 0
            if first is None:
                raise self._refusal(text, field)
            yield encoding, first, begin
            if stop is not None:
                before = self._cuts.word_end_before(text, stop - _CONTEXT)
                begin, start = start if before is None else max(before, start), stop

    def count(self, text: str, field: str) -> Steps[int]:
        """How many tokens it has. Raises InputTooLong."""
        tokens = 0
        for encoding, first, _ in self.windows(text, field):
            tokens += len(encoding) - first
            yield
        return tokens

    def _beginning(self, text: str, field: str) -> Steps[Excerpt]:
        reach = 4 * self.reach
        while reach < len(text) and reach <= self._whole_characters:
            end = self._cuts.end_before(text, reach)
            if end is not None and weight(text[:end]) <= self._whole_characters:
                encoding = self._encode(text[:end], field)
                yield
                if self._cuts.are_settled(encoding, self._wanted):
                    return Excerpt(encoding, is_whole=False)
            reach *= 4
        return self._whole(text, field)

    def _end_within(self, text: str, reach: int, field: str) -> Encoding | None:
        """The last `reach` characters' tokens, if enough of them are those of the whole."""
        starts = list(islice(self._cuts.word_ends(text, len(text) - reach), 2))
        if len(starts) < 2 or weight(text[starts[0] :]) > self._whole_characters:
            return None
        encoding = self._encode(text[starts[0] :], field)
        first = self._cuts.first_token_from(encoding, starts[1] - starts[0])
        return None if first is None or len(encoding) - first < self._wanted else encoding

    def _window_end(self, text: str, start: int) -> int | None:
        """Where a window from `start` on may end; None: where the text does."""
        reach = SLICE_CHARACTERS
        while self._cuts.splits_words and start + reach < len(text):
            end = self._cuts.word_end_before(text, start + reach)
            if end is not None:
                return end
            reach *= 2
        return None

    def _whole(self, text: str, field: str) -> Excerpt:
        self._check_whole(text, field)
        return Excerpt(self._encode(text, field), is_whole=True)

    def _encode(self, text: str, field: str) -> Encoding:
        batch = partial(self._tokenizer.encode_batch, add_special_tokens=False)
        return each(batch, [text], [field])[0]

    def _check_whole(self, text: str, field: str) -> None:
        if len(text) > self._whole_characters or weight(text) > self._whole_characters:
            raise self._refusal(text, field)

    def _refusal(self, text: str, field: str) -> InputTooLong:
        return InputTooLong(
            f"the input has {len(text)} characters and, as this model's tokenizer reads it, no place to "
            f"cut it at: of such a text it takes {self._whole_characters}; shorten it",
            field=field,
        )


def each(
    batch: Callable[[list[T]], list[R]], items: list[T], keys: Iterable[object], name: str = "{}"
) -> list[R]:
    """What the library makes of all items. Raises InvalidInput naming one that it fails at.

    name: what that is called, with {} for its key.
    """
    try:
        return batch(items)
    except BaseException as error:
        # The library raises bare Exception; a class of its own is a mistake of ours, or no error.
        if type(error) is not Exception and not is_panic(error):
            raise
        if len(items) > 1:
            for item, key in zip(items, keys, strict=True):
                each(batch, [item], [key], name)
        field = name.format(next(iter(keys)))
        raise InvalidInput("this model's tokenizer fails at this text", field=field) from None


def grouped(items: Mapping[Key, Item], *, most: int) -> Iterator[dict[Key, Item]]:
    """The items in order, in groups that one step tokenises: SLICE_CHARACTERS at most, or one item.

    most: as many characters of a text are read at first.
    """
    group: dict[Key, Item] = {}
    room = SLICE_CHARACTERS
    for key, item in items.items():
        if isinstance(item, str):
            size = weight(item[:most])
        else:
            size = weight(item[0][:most]) + weight(item[1][:most])
        if group and size > room:
            yield group
            group, room = {}, SLICE_CHARACTERS
        group[key] = item
        room -= size
    if group:
        yield group


def weight(text: str) -> int:
    """Characters that the library may have to hold: of ligatures and the like, those they stand for."""
    return len(text) if text.isascii() else len(unicodedata.normalize("NFKD", text))
