"""What a tokenizer is made of, as its tokenizer.json says it, and what that proves of cutting a text.

Only components listed here prove anything: docs/decisions/017-long-texts-cut.md has the argument.
Does not know texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

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
_SPLITTING_WORDS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})

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


class AddedToken(msgspec.Struct):
    """A token that stands beside the vocabulary; normalized: whether it is looked for after that."""

    content: str
    normalized: bool


class ModelComponent(msgspec.Struct):
    """Of a tokenizer.json's model, all but the vocabulary and the merges, which are large."""

    type: str
    dropout: float | None = None
    alpha: float | None = None
    unk_token: str | None = None
    unk_id: int | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class TokenizerComponents(msgspec.Struct):
    """Of one tokenizer.json."""

    model: ModelComponent
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    added_tokens: list[AddedToken] = []

    @classmethod
    def read(cls, serialized: str) -> TokenizerComponents | None:
        """None if it is no tokenizer.json of the form known here."""
        try:
            return msgspec.json.decode(serialized, type=cls)
        except (msgspec.DecodeError, RecursionError):
            return None

    @property
    def are_local(self) -> bool:
        """Whether all are known, and what each makes of a text depends on what stands near."""
        return (
            self.model.type in ("WordPiece", "WordLevel", "BPE", "Unigram")
            and not self.model.dropout
            and not self.model.alpha
            and all(map(_is_local, self._normalizers))
            and all(map(_is_bounded, self._pre_tokenizers))
        )

    @property
    def joining(self) -> frozenset[str]:
        """Characters that a Replace may take together with what follows them."""
        patterns = [
            component["pattern"] for component in self._normalizers if component["type"] == "Replace"
        ]
        return frozenset(character for each in patterns for character in each.get("String", "")[:-1])

    @property
    def splits_words(self) -> bool:
        """Whether a pre-tokenizer begins another token at a space behind a word."""
        return any(map(_splits_words, self._pre_tokenizers))

    @property
    def keeps_spaces(self) -> bool:
        """Whether no normalizer makes something else of them."""
        return all(map(_keeps_spaces, self._normalizers))

    @property
    def splits_at_its_own_spaces(self) -> bool:
        """Whether a Metaspace does, which makes marks of spaces itself."""
        return any(
            component["type"] == "Metaspace" and component.get("split", True)
            for component in self._pre_tokenizers
        )

    @property
    def _normalizers(self) -> list[dict[str, Any]]:
        return list(_members(self.normalizer, "normalizers"))

    @property
    def _pre_tokenizers(self) -> list[dict[str, Any]]:
        return list(_members(self.pre_tokenizer, "pretokenizers"))


def _members(component: dict[str, Any] | None, name: str) -> Iterator[dict[str, Any]]:
    """A normalizer or pre-tokenizer, or those that a sequence consists of."""
    if component is None:
        return
    if component.get("type") == "Sequence":
        for member in component[name]:
            yield from _members(member, name)
    else:
        yield component


def _is_local(component: dict[str, Any]) -> bool:
    if component.get("type") != "Replace":
        return component.get("type") in _NORMALIZERS
    pattern = component["pattern"]
    return pattern["Regex"] in _SPACES if "Regex" in pattern else bool(pattern["String"])


def _alternatives(component: dict[str, Any]) -> list[str]:
    """What a Split's regular expression consists of; nothing where it is a string."""
    pattern: str = component["pattern"].get("Regex", "")
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


def _is_bounded(component: dict[str, Any]) -> bool:
    """Whether what a pre-tokenizer makes of a text's beginning stays, but for the end of it."""
    if component.get("type") == "Split":
        if component["pattern"].get("String"):
            return len(component["pattern"]["String"]) == 1
        return {*_alternatives(component)} <= _ALTERNATIVES | _WORDS and component["behavior"] in (
            "Isolated",
            "Removed",
        )
    return component.get("type") in _LOCAL or component.get("type") in ("ByteLevel", "Metaspace")


def _splits_words(component: dict[str, Any]) -> bool:
    match component["type"]:
        case "Split":
            return not _WORDS.isdisjoint(_alternatives(component))
        case "ByteLevel":
            return bool(component.get("use_regex", True))
        case "Metaspace":
            return bool(component.get("split", True))
    return component["type"] in _SPLITTING_WORDS


def _keeps_spaces(component: dict[str, Any]) -> bool:
    if component["type"] != "Replace":
        return bool(component["type"] != "ByteLevel")
    replaces_spaces = "Regex" in component["pattern"] or " " in component["pattern"]["String"]
    return not replaces_spaces or component["content"].isspace()
