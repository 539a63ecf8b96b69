"""Text to ids in bounded memory: with the modules it imports the only user of the `tokenizers` library.

Knows a model's longest input; does not know batches, prompts' names or padding.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias, TypeVar

from tokenizers import Encoding
from tokenizers import Tokenizer as HfTokenizer

from shared.contracts import CutIds, TextInput, TokenPair, Tokens, TruncationSide
from shared.engines.panics import panics_are_errors
from shared.errors import BeyondMemory, InputTooLong, InvalidArtefact, InvalidInput
from shared.inference.cuts import Cuts
from shared.inference.layout import Layout, cut, kept, layout_of
from shared.inference.long_texts import SLICE_CHARACTERS, LongTexts, each, weight
from shared.inference.spelling import Spelling, joined, special_around, spelling_of
from shared.inference.steps import Steps
from shared.request_size import check_characters, check_tokens

Key = TypeVar("Key", bound=int | str)
Item = TypeVar("Item", str, tuple[str, str])
Encodings: TypeAlias = tuple[Encoding, Encoding | None]


@dataclass(slots=True)
class _Side:
    """One text's tokens without special ones: all in `encoding`, or in `ids` one more than are read.

    at_most: of the whole text's tokens, `max_document_tokens`. count: how many it has, once known.
    is_short: whether that cut it.
    """

    text: str
    encoding: Encoding | None = None
    ids: list[int] = dataclasses.field(default_factory=list)
    at_most: int | None = None
    count: int | None = None
    is_short: bool = False

    def __len__(self) -> int:
        return len(self.ids if self.encoding is None else self.encoding)


class Tokenizer:
    """Encodes texts as the model's own tokenizer does, special tokens included. Thread-safe.

    Truncation is state of the underlying object, so each way of truncating has an object of its own:
    requests that differ in it never see each other's setting. Of a text much longer than the model reads
    only a part is tokenised: one that has the very tokens that the whole would keep.

    usable_tokens: what there is memory for, if that is less than the model reads. Texts are cut where
    the model stops reading and nowhere else, so one that is still longer then is BeyondMemory.

    All work is in steps of bounded characters. All of it raises InvalidInput for a text that the library
    fails at, and InputTooLong for a very long one that cannot be cut; the errors name the input.
    """

    def __init__(self, serialized: str, max_tokens: int, usable_tokens: int | None = None) -> None:
        self.max_tokens = max_tokens
        self.usable_tokens = max_tokens if usable_tokens is None else min(max_tokens, usable_tokens)
        self._serialized = serialized
        self._lock = threading.Lock()
        self._by_side: dict[TruncationSide | None, HfTokenizer] = {}
        plain = self._for_side(None)
        self._vocabulary_size = plain.get_vocab_size(with_added_tokens=True)
        # One more than the model reads, which says of which text of a pair there is more.
        self._long = LongTexts(plain, Cuts(serialized, plain), max_tokens + 1)

    @classmethod
    def from_file(cls, path: Path, max_tokens: int, usable_tokens: int | None = None) -> Tokenizer:
        """Read a `tokenizer.json`. Raises InvalidArtefact."""
        try:
            with panics_are_errors():
                return cls(path.read_text("utf-8"), max_tokens, usable_tokens)
        except Exception as error:  # tokenizers raises bare Exception
            raise InvalidArtefact(f"{path.name} is not a tokenizer this version reads") from error

    def encode(
        self,
        inputs: Sequence[TextInput],
        *,
        truncate: bool = True,
        side: TruncationSide = "right",
        prefix: str = "",
    ) -> Steps[list[list[int]]]:
        """Ids of each input, at most `max_tokens` long.

        prefix: prepended to texts; inputs that are ids already are taken as they are.
        Raises InputTooLong if `truncate` is off and an input does not fit, InvalidInput for ids
        that are not in the vocabulary.
        """
        texts = {n: prefix + item for n, item in enumerate(inputs) if isinstance(item, str)}
        encoded = yield from self._encode_texts(texts, "input[{}]", truncate, side)
        result = []
        for index, item in enumerate(inputs):
            ids = encoded[index] if isinstance(item, str) else self._checked_ids(item, f"input[{index}]")
            if truncate and len(ids) > self.max_tokens:
                ids = CutIds(cut(ids, self.max_tokens, side))
            if len(ids) > self.usable_tokens:
                raise self._too_long(len(ids), f"input[{index}]")
            result.append(ids)
        return result

    def encode_pairs(
        self,
        query: str,
        documents: Sequence[str],
        *,
        truncate: bool = True,
        side: TruncationSide = "right",
        max_document_tokens: int | None = None,
    ) -> Steps[list[TokenPair]]:
        """The query with each document, at most `max_tokens` long; each text is tokenised once.

        Too long a pair loses tokens of the longer text first. max_document_tokens: documents are cut to
        it before. Raises InputTooLong if `truncate` is off and a pair does not fit.
        """
        (first,) = yield from self._sides({"query": query}, side)
        result = []
        for group in self._groups({f"documents[{n}]": text for n, text in enumerate(documents)}):
            for field, second in zip(group, (yield from self._sides(group, side)), strict=True):
                if max_document_tokens is not None:
                    _shorten(second, max_document_tokens, side)
                result.append((yield from self._pair(first, second, truncate, side, field)))
        return result

    def encode_each(
        self,
        inputs: Sequence[str | tuple[str, str]],
        *,
        truncate: bool = True,
        side: TruncationSide = "right",
    ) -> Steps[list[Tokens]]:
        """Each text or pair of texts, at most `max_tokens` long. Raises InputTooLong."""
        fields = {f"inputs[{n}]": item for n, item in enumerate(inputs)}
        texts = {field: item for field, item in fields.items() if isinstance(item, str)}
        pairs = {field: item for field, item in fields.items() if not isinstance(item, str)}
        encoded: dict[str, Tokens] = {**(yield from self._encode_texts(texts, "{}", truncate, side))}
        short = {field: pair for field, pair in pairs.items() if not any(map(self._is_long, pair))}
        batch = self._for_side(side if truncate else None).encode_batch_fast
        for group in self._groups(short):
            encodings = each(batch, [*group.values()], [*group])
            encoded |= {field: _pair_of(one) for field, one in zip(group, encodings, strict=True)}
            yield
        for field in (field for field in pairs if field not in short):
            first, second = pairs[field]
            (before,) = yield from self._sides({field: first}, side)
            (after,) = yield from self._sides({field: second}, side)
            encoded[field] = yield from self._pair(before, after, truncate, side, field)
        for field, tokens in encoded.items():
            self._check_length(len(tokens), field)
        return [encoded[field] for field in fields]

    def spell(
        self, texts: Sequence[str], *, limit: int, prefix: str = "", special_tokens: bool = True
    ) -> Steps[list[Spelling]]:
        """The tokens of each text, `prefix` before it, uncut. special_tokens: also those of no text.

        Raises PayloadTooLarge once there are more than `limit` tokens.
        """
        batch = partial(self._for_side(None).encode_batch, add_special_tokens=special_tokens)
        result: list[Spelling] = []
        room = limit
        whole = {f"inputs[{n}]": prefix + text for n, text in enumerate(texts)}
        for group in self._groups(whole, most=SLICE_CHARACTERS + 1):
            ((field, text), *others) = group.items()
            if not others and len(text) > SLICE_CHARACTERS:
                spellings = [(yield from self._spell_long(text, field, room, limit, special_tokens))]
            else:
                encodings = each(batch, [*group.values()], [*group])
                spellings = [spelling_of(*one) for one in zip(group.values(), encodings, strict=True)]
                yield
            room = _room_after(spellings, room, limit)
            result += spellings
        return result

    def decode(
        self, inputs: Sequence[Sequence[int]], *, limit: int, skip_special_tokens: bool = True
    ) -> Steps[list[str]]:
        """The text of each list of ids, as the library tells it. A step is an input.

        Raises InvalidInput for an id that is none, which the library would pass over, and
        PayloadTooLarge for more than `limit` ids, or texts longer than so many tokens ever have.
        """
        check_tokens(sum(map(len, inputs)), limit, "ids")
        plain = self._for_side(None)
        batch = partial(plain.decode_batch, skip_special_tokens=skip_special_tokens)
        texts: list[str] = []
        characters = 0
        for index, ids in enumerate(inputs):
            field = f"ids[{index}]"
            for token, times in Counter(ids).items():
                name = plain.id_to_token(token) if 0 <= token < 2**32 else None
                if name is None:
                    raise InvalidInput(f"this model's vocabulary has no id {token}", field=field)
                characters += len(name) * times
            check_characters(characters, limit, "ids")
            texts += each(batch, [list(ids)], [field])
            yield
        return texts

    def _encode_texts(
        self, texts: Mapping[Key, str], name: str, truncate: bool, side: TruncationSide
    ) -> Steps[dict[Key, list[int]]]:
        """name: what errors call a text, with {} for its key."""
        processor = self._for_side(side if truncate else None)
        encoded: dict[Key, list[int]] = {}
        short = {key: text for key, text in texts.items() if len(text) <= self._long.reach}
        for group in self._groups(short):
            encodings = each(processor.encode_batch_fast, [*group.values()], group, name)
            for key, encoding in zip(group, encodings, strict=True):
                encoded[key] = self._ids_of(encoding)
            yield
        if len(short) == len(texts):
            return encoded
        long = {key: text for key, text in texts.items() if key not in short}
        for group in self._groups(long):
            parts = yield from self._sides({name.format(key): text for key, text in group.items()}, side)
            for key, part in zip(group, parts, strict=True):
                encoded[key] = self._processed(part, truncate, side, name.format(key))
        return encoded

    def _processed(self, part: _Side, truncate: bool, side: TruncationSide, field: str) -> list[int]:
        if part.encoding is not None:
            processor = self._for_side(side if truncate else None)
            parts: list[Encodings] = [(part.encoding, None)]
            return self._ids_of(each(partial(_post_processed, processor), parts, [field])[0])
        if not truncate:
            raise self._too_long(None, field)
        room = self.max_tokens - self._around_one.special_tokens
        return CutIds(self._around_one.place([cut(part.ids, room, side)]).ids)

    def _sides(self, texts: Mapping[str, str], side: TruncationSide) -> Steps[list[_Side]]:
        """texts: by field."""
        plain = self._for_side(None)
        batch = partial(plain.encode_batch_fast, add_special_tokens=False)
        short = {field: text for field, text in texts.items() if not self._is_long(text)}
        long = {field: text for field, text in texts.items() if field not in short}
        made: dict[str, _Side] = {}
        if short:
            for field, encoding in zip(short, each(batch, [*short.values()], [*short]), strict=True):
                made[field] = _Side(short[field], encoding)
            yield
        if long and side == "right":
            parts = yield from self._long.beginnings([*long.values()], [*long])
        else:
            parts = []
            for field, text in long.items():
                parts.append((yield from self._long.end(text, field)))
        for field, part in zip(long, parts, strict=True):
            made[field] = _Side(long[field], part.encoding)
            if not part.is_whole or len(part.encoding) > self.max_tokens:
                made[field].count = len(part.encoding) if part.is_whole else None
                made[field].ids = cut(part.encoding.ids, self.max_tokens + 1, side)
                made[field].encoding = None
        return [made[field] for field in texts]

    def _pair(
        self, first: _Side, second: _Side, truncate: bool, side: TruncationSide, where: str
    ) -> Steps[TokenPair]:
        plain = self._for_side(None)
        room = self.max_tokens - plain.num_special_tokens_to_add(True)
        lengths = len(first), len(second)
        one, two = first.encoding, second.encoding
        whole = one is not None and two is not None
        if one is not None and two is not None and (not truncate or sum(lengths) <= room):
            parts: list[Encodings] = [(one, two)]
            pair = _pair_of(each(partial(_post_processed, plain), parts, [where])[0])
        elif not truncate:
            raise self._too_long(None, where)
        else:
            # Not by the library, which pairs all that truncation leaves over, each with each.
            ids = [part.encoding.ids if part.encoding else part.ids for part in (first, second)]
            if room % 2 and min(lengths) > self.max_tokens and not whole:
                # Both are cut, and the longer one keeps a token more: now it matters which one that is.
                lengths = (yield from self._count(first)), (yield from self._count(second))
            parts_kept = zip(ids, kept(lengths, room), strict=True)
            placed = self._around_two.place([cut(part, length, side) for part, length in parts_kept])
            pair = dataclasses.replace(placed, is_cut=sum(lengths) > room)
        if second.is_short:
            pair = dataclasses.replace(pair, is_cut=True)
        self._check_length(len(pair.ids), where)
        return pair

    def _count(self, side: _Side) -> Steps[int]:
        """How many tokens a text has; where that takes too much, as many as characters."""
        if side.encoding is not None:
            return len(side.encoding)
        if side.count is None:
            try:
                side.count = yield from self._long.count(side.text, "")
            except InputTooLong:
                side.count = len(side.text)
        return side.count if side.at_most is None else min(side.count, side.at_most)

    @cached_property
    def _around_one(self) -> Layout:
        return layout_of(self._for_side(None), 1)

    @cached_property
    def _around_two(self) -> Layout:
        return layout_of(self._for_side(None), 2)

    def _spell_long(
        self, text: str, field: str, room: int, limit: int, special_tokens: bool
    ) -> Steps[Spelling]:
        parts: list[Spelling] = []
        before = after = None
        begun = byte = 0
        for encoding, first, begin in self._long.windows(text, field):
            part = text[begin : begin + max((stop for _, stop in encoding.offsets), default=0)]
            if special_tokens and not parts:
                wrapped = self._for_side(None).post_process(encoding)
                before, after = special_around(spelling_of(part, wrapped))
            byte, begun = byte + len(text[begun:begin].encode()), begin
            parts.append(spelling_of(part, encoding).between(first, len(encoding)).moved(byte))
            room = _room_after(parts[-1:], room, limit)
            yield
        return joined([part for part in (before, *parts, after) if part is not None])

    def _groups(self, items: Mapping[Key, Item], most: int | None = None) -> Iterator[dict[Key, Item]]:
        """The items in order, in groups that a step tokenises: bounded characters, or one item.

        most: as many characters of a text are read at first; None: of a long one a part.
        """
        most = self._long.reach if most is None else most
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

    def _is_long(self, text: str) -> bool:
        return len(text) > self._long.reach

    def _ids_of(self, encoding: Encoding) -> list[int]:
        ids = encoding.ids
        return CutIds(ids) if len(ids) >= self.max_tokens and encoding.overflowing else ids

    def _check_length(self, tokens: int, field: str) -> None:
        if tokens > self.usable_tokens:
            raise self._too_long(tokens, field)

    def _too_long(self, tokens: int | None, field: str) -> InputTooLong:
        """tokens: None for more than the model reads."""
        many = f"more than {self.max_tokens}" if tokens is None else str(tokens)
        if self.usable_tokens < self.max_tokens:
            return BeyondMemory(
                f"the input has {many} tokens, the memory of this service is enough for "
                f"{self.usable_tokens} of the {self.max_tokens} that the model reads: send less",
                field=field,
            )
        return InputTooLong(
            f"the input has {many} tokens, the model reads {self.max_tokens}: shorten it or set "
            "truncate",
            field=field,
        )

    def _checked_ids(self, ids: Sequence[int], field: str) -> list[int]:
        if not all(0 <= token < self._vocabulary_size for token in ids):
            raise InvalidInput(
                f"token ids must be between 0 and {self._vocabulary_size - 1}, this model's vocabulary",
                field=field,
            )
        return list(ids)

    def _for_side(self, side: TruncationSide | None) -> HfTokenizer:
        with self._lock:
            if side not in self._by_side:
                tokenizer = HfTokenizer.from_str(self._serialized)
                tokenizer.no_padding()
                tokenizer.no_truncation()
                if side is not None:
                    tokenizer.enable_truncation(self.max_tokens, direction=side)
                self._by_side[side] = tokenizer
            return self._by_side[side]


def _post_processed(
    processor: HfTokenizer, parts: list[tuple[Encoding, Encoding | None]]
) -> list[Encoding]:
    """Truncated as `processor` truncates, and with special tokens."""
    return [processor.post_process(*part) for part in parts]


def _room_after(spellings: Sequence[Spelling], room: int, limit: int) -> int:
    """How many tokens there may be yet. Raises PayloadTooLarge."""
    room -= sum(map(len, spellings))
    check_tokens(limit - room, limit, "inputs", counted_all=False)
    return room


def _shorten(part: _Side, tokens: int, side: TruncationSide) -> None:
    part.at_most = tokens
    part.is_short = len(part) > tokens
    if part.encoding is None:
        part.ids = cut(part.ids, tokens, side)
    elif len(part.encoding) > tokens:
        part.encoding.truncate(tokens, direction=side)


def _pair_of(encoding: Encoding) -> TokenPair:
    return TokenPair(encoding.ids, encoding.type_ids, bool(encoding.overflowing))
