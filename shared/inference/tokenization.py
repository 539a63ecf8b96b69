"""Text to ids in bounded memory: with the modules it imports the only user of the `tokenizers` library.

Knows a model's longest input; does not know batches, prompts' names or padding.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias

from msgspec.structs import replace
from tokenizers import Encoding
from tokenizers import Tokenizer as HfTokenizer

from shared.contracts import CutIds, TextInput, TokenPair, Tokens, TruncationSide
from shared.engines.panics import panics_are_errors
from shared.errors import BeyondMemory, InputTooLong, InvalidArtefact, InvalidInput
from shared.inference.cuts import Cuts
from shared.inference.layout import Layout, cut, kept, layout_of
from shared.inference.long_texts import Key, LongTexts, each, grouped
from shared.inference.rendered_pairs import RenderedPairs
from shared.inference.sides import Side, Sides
from shared.inference.speller import Speller
from shared.inference.steps import Steps
from shared.inference.truncating import truncating
from shared.models.manifest import PairTemplate

Encodings: TypeAlias = tuple[Encoding, Encoding | None]


class Tokenizer:
    """Encodes texts as the model's own tokenizer does, special tokens included. Thread-safe.

    Truncation is state of the underlying object, so each way of truncating has an object of its own:
    requests that differ in it never see each other's setting. Of a text much longer than the model reads
    only an excerpt is tokenised: one that has the very tokens that the whole would keep.

    usable_tokens: what there is memory for, if that is less than the model reads. Texts are cut where
    the model stops reading and nowhere else, so one that is still longer then is BeyondMemory.
    template: of a model that reads a pair as one text.

    All work is in steps of bounded characters. All of it raises InvalidInput for a text that the library
    fails at, and InputTooLong for a very long one that cannot be cut; the errors name the input.
    """

    def __init__(
        self,
        serialized: str,
        max_tokens: int,
        usable_tokens: int | None = None,
        template: PairTemplate | None = None,
    ) -> None:
        self.max_tokens = max_tokens
        self.usable_tokens = max_tokens if usable_tokens is None else min(max_tokens, usable_tokens)
        self._lock = threading.Lock()
        plain = HfTokenizer.from_str(serialized)
        plain.no_padding()
        plain.no_truncation()
        self._by_side: dict[TruncationSide | None, HfTokenizer] = {None: plain}
        self._vocabulary_size = plain.get_vocab_size(with_added_tokens=True)
        # One more than the model reads: it shows which text of a pair is longer than that.
        self._long = LongTexts(plain, Cuts(serialized, plain), max_tokens + 1)
        self._sides = Sides(plain, self._long, max_tokens)
        self.speller = Speller(plain, self._long)
        self._rendered = RenderedPairs(template, plain, self._long, max_tokens) if template else None

    @classmethod
    def from_file(
        cls,
        path: Path,
        max_tokens: int,
        usable_tokens: int | None = None,
        template: PairTemplate | None = None,
    ) -> Tokenizer:
        """Read a `tokenizer.json`. Raises InvalidArtefact."""
        try:
            with panics_are_errors():
                return cls(path.read_text("utf-8"), max_tokens, usable_tokens, template)
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
        if self._rendered is not None:
            named = {f"documents[{n}]": (query, text) for n, text in enumerate(documents)}
            whole = yield from self._read_rendered(named, truncate, side, max_document_tokens)
            return [*whole.values()]
        (first,) = yield from self._sides.read({"query": query}, side)
        result = []
        by_field = {f"documents[{n}]": text for n, text in enumerate(documents)}
        for group in grouped(by_field, most=self._long.reach):
            for field, second in zip(group, (yield from self._sides.read(group, side)), strict=True):
                if max_document_tokens is not None:
                    second.shorten(max_document_tokens, side)
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
        if self._rendered is not None:
            if texts:
                raise InvalidInput("this model scores pairs: give two texts", field=next(iter(texts)))
            whole = yield from self._read_rendered(pairs, truncate, side)
            return [*whole.values()]
        encoded: dict[str, Tokens] = {**(yield from self._encode_texts(texts, "{}", truncate, side))}
        short = {field: pair for field, pair in pairs.items() if not any(map(self._is_long, pair))}
        batch = self._for_side(side if truncate else None).encode_batch_fast
        for group in grouped(short, most=self._long.reach):
            encodings = each(batch, [*group.values()], [*group])
            encoded |= {field: _pair_of(one) for field, one in zip(group, encodings, strict=True)}
            yield
        for field in (field for field in pairs if field not in short):
            first, second = pairs[field]
            (before,) = yield from self._sides.read({field: first}, side)
            (after,) = yield from self._sides.read({field: second}, side)
            encoded[field] = yield from self._pair(before, after, truncate, side, field)
        for field, tokens in encoded.items():
            self._check_length(len(tokens), field)
        return [encoded[field] for field in fields]

    def _read_rendered(
        self,
        pairs: Mapping[str, tuple[str, str]],
        truncate: bool,
        side: TruncationSide,
        max_document_tokens: int | None = None,
    ) -> Steps[dict[str, TokenPair]]:
        assert self._rendered is not None, "there is no template"
        read = yield from self._rendered.read(
            pairs,
            lambda texts, cutting: self._encode_texts(texts, "{}", cutting, "right"),
            truncate=truncate,
            side=side,
            max_document_tokens=max_document_tokens,
        )
        for field, pair in read.items():
            self._check_length(len(pair), field)
        return read

    def _encode_texts(
        self, texts: Mapping[Key, str], name: str, truncate: bool, side: TruncationSide
    ) -> Steps[dict[Key, list[int]]]:
        """name: what errors call a text, with {} for its key."""
        processor = self._for_side(side if truncate else None)
        encoded: dict[Key, list[int]] = {}
        short = {key: text for key, text in texts.items() if len(text) <= self._long.reach}
        for group in grouped(short, most=self._long.reach):
            encodings = each(processor.encode_batch_fast, [*group.values()], group, name)
            for key, encoding in zip(group, encodings, strict=True):
                encoded[key] = self._ids_of(encoding)
            yield
        if len(short) == len(texts):
            return encoded
        long = {key: text for key, text in texts.items() if key not in short}
        for group in grouped(long, most=self._long.reach):
            sides = yield from self._sides.read(
                {name.format(key): text for key, text in group.items()}, side
            )
            for key, read in zip(group, sides, strict=True):
                encoded[key] = self._processed(read, truncate, side, name.format(key))
        return encoded

    def _processed(self, read: Side, truncate: bool, side: TruncationSide, field: str) -> list[int]:
        if read.encoding is not None:
            processor = self._for_side(side if truncate else None)
            one: list[Encodings] = [(read.encoding, None)]
            return self._ids_of(each(partial(_post_processed, processor), one, [field])[0])
        if not truncate:
            raise self._too_long(None, field)
        room = self.max_tokens - self._around_one.special_tokens
        return CutIds(self._around_one.place([cut(read.ids, room, side)]).ids)

    def _pair(
        self, first: Side, second: Side, truncate: bool, side: TruncationSide, where: str
    ) -> Steps[TokenPair]:
        plain = self._for_side(None)
        room = self.max_tokens - plain.num_special_tokens_to_add(True)
        lengths = len(first), len(second)
        one, two = first.encoding, second.encoding
        whole = one is not None and two is not None
        if one is not None and two is not None and (not truncate or sum(lengths) <= room):
            pairs: list[Encodings] = [(one, two)]
            pair = _pair_of(each(partial(_post_processed, plain), pairs, [where])[0])
        elif not truncate:
            raise self._too_long(None, where)
        else:
            # Not by the library, which pairs all that truncation leaves over, each with each.
            ids = [read.encoding.ids if read.encoding else read.ids for read in (first, second)]
            if room % 2 and min(lengths) > self.max_tokens and not whole:
                # Both are cut, and the longer one keeps a token more: now it matters which one that is.
                lengths = (yield from self._sides.count(first)), (yield from self._sides.count(second))
            ids_kept = zip(ids, kept(lengths, room), strict=True)
            placed = self._around_two.place(
                [cut(kept_ids, length, side) for kept_ids, length in ids_kept]
            )
            pair = replace(placed, is_cut=sum(lengths) > room)
        if second.is_short:
            pair = replace(pair, is_cut=True)
        self._check_length(len(pair.ids), where)
        return pair

    @cached_property
    def _around_one(self) -> Layout:
        return layout_of(self._for_side(None), 1)

    @cached_property
    def _around_two(self) -> Layout:
        return layout_of(self._for_side(None), 2)

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
            if side is not None and side not in self._by_side:
                self._by_side[side] = truncating(self._by_side[None], self.max_tokens, side)
            return self._by_side[side]


def _post_processed(
    processor: HfTokenizer, encodings: list[tuple[Encoding, Encoding | None]]
) -> list[Encoding]:
    """Truncated as `processor` truncates, and with special tokens."""
    return [processor.post_process(*one_or_two) for one_or_two in encodings]


def _pair_of(encoding: Encoding) -> TokenPair:
    return TokenPair(encoding.ids, encoding.type_ids, bool(encoding.overflowing))
