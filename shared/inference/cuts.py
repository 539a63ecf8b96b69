"""Where a text may be cut so that a tokenizer makes the same tokens of the part as of the whole.

Proven from the tokenizer's own parts, or denied; docs/decisions/017-long-texts-cut.md has the argument.
Does not know how long a text may be, nor what becomes of the tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import msgspec
from tokenizers import Encoding, Tokenizer

from shared.engines.panics import Panicked, panics_are_errors

_TAME = (
    "\x21-\x7e\u00c0-\u024f\u0391-\u03a9\u03ac-\u03ce\u0400-\u0481\u048a-\u052f\u05d0-\u05ea"
    "\u0620-\u063f\u0641-\u064a\u0e01-\u0e30\u0e40-\u0e46\u10d0-\u10fa\u2010-\u2027"
    "\u3001-\u3003\u3008-\u3011\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7a3\uff01-\uff5e\U0001f300-\U0001f3fa\U0001f400-\U0001f64f\U0001f680-\U0001f6c5"
    "\U0001f900-\U0001f9ff\U00020000-\U0002a6df"
)
"""Characters between any two of which every Unicode normal form and every grapheme ends.

Assigned long ago, no combining marks, nothing that composes with what stands before it, no joiners,
no prefixes, no flags; none is white space, nor becomes it.
"""
_BEFORE_SPACE = "\u0900-\u0d4d\u0d4f-\u0dff\u0e31-\u0eff\u1000-\u109f\u1780-\u17dd"
"""After these, marks included, white space ends a normal form and a grapheme too."""
_END = re.compile(f"[{_TAME}](?=[{_TAME} \n\t])|[{_BEFORE_SPACE}](?=[ \n\t])")

_WORD_END = re.compile("[A-Za-z0-9À-ÖØ-öø-ɏΑ-ΡΣ-Ωα-ωЀ-ҁҊ-ԯא-תؠ-ؿف-ي가-힣](?= )")
"""Where the pre-tokenizers of _PARTS_WORDS begin another token, whatever stands further off."""

_REACH = 2_048
"""Characters that are looked through for a place to cut."""

_LOOKAHEAD = 64
"""Tokens behind a boundary that prove it: the pre-tokenizers below look at most 4 characters ahead of
what they match, which are at most 16 tokens (of bytes); two of them in a row look twice as far."""

_NORMALIZERS = frozenset(
    (
        "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "BertNormalizer", "StripAccents", "Strip", "Nmt",
        "Precompiled", "Prepend", "ByteLevel",
    )
)  # fmt: skip
"""Normalizers of which each character's result depends on its own grapheme or combining sequence."""
_SPACES = frozenset({" {2,}", r"\s+", " +", r"\s{2,}"})
"""Regular expressions of a Replace that match white space alone."""

_LOCAL = frozenset(
    ["BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits", "CharDelimiterSplit"]
)
"""Pre-tokenizers that split by the characters on both sides of the split, or runs of one class."""
_PARTS_WORDS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})

_ALTERNATIVES = frozenset(
    (
        "'s", "'t", "'re", "'ve", "'m", "'ll", "'d",
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        "'(?i:[sdmt]|ll|ve|re)", "'(?:[sdmt]|ll|ve|re)",
        r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", r"\s+(?!\S)", r"\s+", r"\s+$", r"\s",
        r"\p{N}", r"\p{N}{1,3}", r"\p{N}+",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]++[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+", r"\s*[\r\n]",
    )
)  # fmt: skip
_WORDS = frozenset(
    (
        r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?+\p{L}+",
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    )
)  # fmt: skip
"""What known pre-tokenizers' regular expressions consist of, _WORDS those that match words. Each is a
run of one class, or is decided by four characters; none goes on from a word into a space."""


class _Added(msgspec.Struct):
    content: str
    normalized: bool


class _ModelPart(msgspec.Struct):
    """Of a tokenizer.json's model, all but the vocabulary and the merges, which are large."""

    type: str
    dropout: float | None = None
    alpha: float | None = None
    unk_token: str | None = None
    unk_id: int | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _Parts(msgspec.Struct):
    model: _ModelPart
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    added_tokens: list[_Added] = []


class Cuts:
    """Of one tokenizer. Thread-safe. Nothing is provable of a tokenizer with a part unknown here."""

    def __init__(self, serialized: str, tokenizer: Tokenizer) -> None:
        """serialized: its tokenizer.json; tokenizer: made of that, without truncation."""
        self._tokenizer = tokenizer
        try:
            parts = msgspec.json.decode(serialized, type=_Parts)
        except (msgspec.DecodeError, RecursionError):
            self.provable = self.parts_words = False
            return
        self._model = parts.model
        normalizers = list(_members(parts.normalizer, "normalizers"))
        pre_tokenizers = list(_members(parts.pre_tokenizer, "pretokenizers"))
        self._joining: set[str] = set()
        """Characters that a Replace may take together with what follows them."""
        self.provable = (
            parts.model.type in ("WordPiece", "WordLevel", "BPE", "Unigram")
            and not parts.model.dropout
            and not parts.model.alpha
            and all(self._is_local(part) for part in normalizers)
            and all(_is_bounded(part) for part in pre_tokenizers)
        )
        self.parts_words = (
            self.provable
            and any(_parts_words(part) for part in pre_tokenizers)
            and (
                (all(_keeps_spaces(part) for part in normalizers) and " " in self._normalized("a b"))
                or any(
                    part["type"] == "Metaspace" and part.get("split", True) for part in pre_tokenizers
                )
            )
        )
        """Whether a token begins at every space behind a word, whatever stands before and after."""
        self._added = [added.content for added in parts.added_tokens if not added.normalized]
        self._added_normalized = [
            self._normalized(added.content) for added in parts.added_tokens if added.normalized
        ]

    def end_before(self, text: str, at: int) -> int | None:
        """The last place up to `at` where `text` may end: what it was made into so far stays.

        Its last tokens may change nevertheless: see `are_settled`. None: there is no such place near.
        """
        if not self.provable:
            return None
        return self._last(_END, text, at)

    def are_settled(self, encoding: Encoding, wanted: int) -> bool:
        """Whether the first `wanted` tokens of a text that was cut at an `end_before` are the whole's.

        encoding: of the part, without special tokens.
        """
        last = len(encoding) - _LOOKAHEAD
        if last < wanted:
            return False
        words = encoding.word_ids
        if any(words[n] != words[n - 1] for n in range(max(wanted, 1), last + 1)):
            return True
        if self._model.type not in ("BPE", "Unigram"):
            return False
        tokens, ids = encoding.tokens, encoding.ids
        tried = range(max(wanted, 1), min(last, wanted + _TRIED) + 1)
        return any(self._is_apart(tokens, ids, words, n) for n in tried)

    def word_ends(self, text: str, at: int) -> Iterator[int]:
        """Places from `at` on, near it, where a word ends before a space."""
        for match in _WORD_END.finditer(text, at, at + _REACH):
            if self._splits_nothing(text, match.end()):
                yield match.end()

    def word_end_before(self, text: str, at: int) -> int | None:
        """The last of `word_ends` up to `at`; None: there is none near."""
        return self._last(_WORD_END, text, at)

    def first_token_from(self, encoding: Encoding, at: int) -> int | None:
        """The first token from character `at` on, if it and all behind it are as in the whole text.

        encoding: of a text that begins at one of `word_ends`; at: another of them.
        None: that cannot be said.
        """
        offsets, words = encoding.offsets, encoding.word_ids
        first = next((n for n, (start, _) in enumerate(offsets) if start >= at), len(offsets))
        if not first or offsets[first - 1][1] > at:
            return None
        if self.parts_words and (first == len(offsets) or words[first] != words[first - 1]):
            return first
        if first == len(offsets):
            return None
        # Not for Unigram: its scores are sums from the word's beginning, whose rounding would differ.
        is_bpe = self._model.type == "BPE"
        if is_bpe and self._is_apart(encoding.tokens, encoding.ids, words, first):
            return first
        return None

    def _last(self, pattern: re.Pattern[str], text: str, at: int) -> int | None:
        found = [match.end() for match in pattern.finditer(text, max(0, at - _REACH), at + 1)]
        ends = (end for end in reversed(found[-_TRIED:]) if end <= at)
        return next((end for end in ends if self._splits_nothing(text, end)), None)

    def _splits_nothing(self, text: str, at: int) -> bool:
        """Whether no added token and no replaced string may stand on both sides, or ends there."""
        forms = text[at - 1], unicodedata.normalize("NFKD", text[at - 1]), text[at - 1].lower()
        if self._joining.intersection("".join(forms)):
            return False
        if _ends_in(text[max(0, at - self._longest_added) : at], self._added):
            return False
        if not self._added_normalized:
            return True
        try:
            tail = self._normalized(text[max(0, at - 4 * self._longest_added - _LOOKAHEAD) : at])
        except Panicked:
            return False
        # Were it shorter, characters that normalizing removes might hide what begins further left.
        return (len(tail) >= self._longest_added or at <= len(tail)) and not _ends_in(
            tail, self._added_normalized
        )

    def _is_apart(
        self, tokens: Sequence[str], ids: Sequence[int], words: Sequence[int | None], at: int
    ) -> bool:
        """Whether no token of the vocabulary may hold what stands on both sides of token `at`.

        Where none can, a merge never crosses, nor does a piece of the best segmentation.
        """
        if self._model.continuing_subword_prefix or self._model.end_of_word_suffix:
            return False
        sides: list[str] = []
        for neighbours in (range(at - 1, -1, -1), range(at, len(tokens))):
            side: list[str] = []
            length = 0
            for n in neighbours:
                if length >= self._longest or words[n] != words[at]:
                    break
                if ids[n] in self._unreadable:
                    return False
                side.append(tokens[n])
                length += len(tokens[n])
            sides.append("".join(reversed(side) if neighbours.step < 0 else side))
        left, right = sides
        if len(right) < self._longest and words[-1] == words[at]:
            return False  # what else stands there is not known
        known = self._tokenizer.token_to_id
        return not any(
            known(left[len(left) - before :] + right[: length - before]) is not None
            for length in range(2, self._longest + 1)
            for before in range(max(1, length - len(right)), min(length - 1, len(left)) + 1)
        )

    @cached_property
    def _longest_added(self) -> int:
        return max(map(len, (*self._added, *self._added_normalized)), default=0)

    @cached_property
    def _longest(self) -> int:
        """Characters of the vocabulary's longest token."""
        return max(
            len(self._tokenizer.id_to_token(n) or "") for n in range(self._tokenizer.get_vocab_size())
        )

    @cached_property
    def _unreadable(self) -> frozenset[int]:
        """Tokens that are not the text they stand for: of unknown characters, and of single bytes."""
        names = [self._model.unk_token] if self._model.unk_token else []
        names += [f"<0x{byte:02X}>" for byte in range(256)]
        ids = {self._tokenizer.token_to_id(name) for name in names} | {self._model.unk_id}
        return frozenset(n for n in ids if n is not None)

    def _normalized(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        if normalizer is None:
            return text
        with panics_are_errors():
            return str(normalizer.normalize_str(text))

    def _is_local(self, part: dict[str, Any]) -> bool:
        if part.get("type") != "Replace":
            return part.get("type") in _NORMALIZERS
        pattern = part["pattern"]
        if "Regex" in pattern:
            return pattern["Regex"] in _SPACES
        self._joining.update(pattern["String"][:-1])
        return bool(pattern["String"])


_TRIED = 64
"""Places that are tried near one another before a longer part of the text is."""


def _members(part: dict[str, Any] | None, name: str) -> Iterator[dict[str, Any]]:
    """A normalizer or pre-tokenizer, or those that a sequence consists of."""
    if part is None:
        return
    if part.get("type") == "Sequence":
        for member in part[name]:
            yield from _members(member, name)
    else:
        yield part


def _alternatives(part: dict[str, Any]) -> list[str]:
    """What a Split's regular expression consists of; nothing where it is a string."""
    pattern: str = part["pattern"].get("Regex", "")
    found, depth, start, in_class = [], 0, 0, False
    for at, character in enumerate(pattern):
        if at and pattern[at - 1] == "\\":
            continue
        if character in "[]":
            in_class = character == "["
        elif not in_class:
            depth += (character == "(") - (character == ")")
            if character == "|" and not depth:
                found.append(pattern[start:at])
                start = at + 1
    return [*found, pattern[start:]] if pattern else []


def _is_bounded(part: dict[str, Any]) -> bool:
    """Whether what a pre-tokenizer makes of a text's beginning stays, but for the end of it."""
    if part.get("type") == "Split":
        if part["pattern"].get("String"):
            return len(part["pattern"]["String"]) == 1
        return {*_alternatives(part)} <= _ALTERNATIVES | _WORDS and part["behavior"] in (
            "Isolated",
            "Removed",
        )
    return part.get("type") in _LOCAL or part.get("type") in ("ByteLevel", "Metaspace")


def _parts_words(part: dict[str, Any]) -> bool:
    match part["type"]:
        case "Split":
            return not _WORDS.isdisjoint(_alternatives(part))
        case "ByteLevel":
            return bool(part.get("use_regex", True))
        case "Metaspace":
            return bool(part.get("split", True))
    return part["type"] in _PARTS_WORDS


def _keeps_spaces(part: dict[str, Any]) -> bool:
    if part["type"] != "Replace":
        return bool(part["type"] != "ByteLevel")
    replaces_spaces = "Regex" in part["pattern"] or " " in part["pattern"]["String"]
    return not replaces_spaces or part["content"].isspace()


def _ends_in(text: str, contents: Sequence[str]) -> bool:
    """Whether `text` ends in one of them, or in the beginning of one."""
    return any(
        content[0] in text and any(text.endswith(content[:n]) for n in range(1, len(content) + 1))
        for content in contents
        if content
    )
