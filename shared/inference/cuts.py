"""Where a text may be cut so that what is kept has the tokens that it has in the whole.

Proven from the tokenizer's components, or denied: docs/decisions/017-long-texts-cut.md has the argument.
Does not know how long a text may be, nor what becomes of the tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, cached_property

from tokenizers import Encoding, Tokenizer

from shared.engines.panics import Panicked, panics_are_errors
from shared.inference.tokenizer_components import TokenizerComponents

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


@cache
def _ends() -> re.Pattern[str]:
    """After these a text may end. Compiling it takes 3 ms, and a start needs none."""
    return re.compile(f"[{_TAME}](?=[{_TAME} \n\t])|[{_BEFORE_SPACE}](?=[ \n\t])")


@cache
def _word_end() -> re.Pattern[str]:
    """Where the pre-tokenizers that split words begin another token, whatever stands further off."""
    return re.compile("[A-Za-z0-9À-ÖØ-öø-ɏΑ-ΡΣ-Ωα-ωЀ-ҁҊ-ԯא-תؠ-ؿف-ي가-힣](?= )")


_REACH = 2_048
"""Characters that are looked through for a place to cut."""

_LOOKAHEAD = 64
"""Tokens behind a boundary that prove it: the known pre-tokenizers look at most 4 characters ahead of
what they match, which are at most 16 tokens (of bytes); two of them in a row look twice as far."""

_TRIED = 64
"""Places that are tried near one another before more of the text is."""


class Cuts:
    """Of one tokenizer. Thread-safe. Of a tokenizer with an unknown component nothing is provable."""

    def __init__(self, serialized: str, tokenizer: Tokenizer) -> None:
        """serialized: its tokenizer.json; tokenizer: made of that, without truncation."""
        self._tokenizer = tokenizer
        components = TokenizerComponents.read(serialized)
        self._provable = components is not None and components.are_local
        self.splits_words = False
        """Whether a token begins at every space behind a word, whatever stands before and after."""
        if components is None or not self._provable:
            return
        self._model = components.model
        self._joining = components.joining
        self.splits_words = components.splits_words and (
            (components.keeps_spaces and " " in self._normalized("a b"))
            or components.splits_at_its_own_spaces
        )
        self._added = [added.content for added in components.added_tokens if not added.normalized]
        self._added_normalized = [
            self._normalized(added.content) for added in components.added_tokens if added.normalized
        ]

    def end_before(self, text: str, at: int) -> int | None:
        """The last place up to `at` where `text` may end: what it was made into so far stays.

        Its last tokens may change nevertheless: see `are_settled`. None: there is no such place near.
        """
        return self._last(_ends(), text, at)

    def are_settled(self, encoding: Encoding, wanted: int) -> bool:
        """Whether the first `wanted` tokens of a text that was cut at an `end_before` are the whole's.

        encoding: of the text up to there, without special tokens.
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
        if not self._provable:
            return
        for match in _word_end().finditer(text, at, at + _REACH):
            if self._splits_nothing(text, match.end()):
                yield match.end()

    def word_end_before(self, text: str, at: int) -> int | None:
        """The last of `word_ends` up to `at`; None: there is none near."""
        return self._last(_word_end(), text, at)

    def first_token_from(self, encoding: Encoding, at: int) -> int | None:
        """The first token from character `at` on, if it and all behind it are as in the whole text.

        encoding: of a text that begins at one of `word_ends`; at: another of them.
        None: that cannot be said.
        """
        offsets, words = encoding.offsets, encoding.word_ids
        first = next((n for n, (start, _) in enumerate(offsets) if start >= at), len(offsets))
        if not first or offsets[first - 1][1] > at:
            return None
        if self.splits_words and (first == len(offsets) or words[first] != words[first - 1]):
            return first
        if first == len(offsets):
            return None
        # Not for Unigram: its scores are sums from the word's beginning, whose rounding would differ.
        is_bpe = self._model.type == "BPE"
        if is_bpe and self._is_apart(encoding.tokens, encoding.ids, words, first):
            return first
        return None

    def _last(self, pattern: re.Pattern[str], text: str, at: int) -> int | None:
        if not self._provable:
            return None
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


def _ends_in(text: str, contents: Sequence[str]) -> bool:
    """Whether `text` ends in one of them, or in the beginning of one."""
    return any(
        content[0] in text and any(text.endswith(content[:n]) for n in range(1, len(content) + 1))
        for content in contents
        if content
    )
