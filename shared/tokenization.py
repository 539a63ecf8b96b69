"""Text to ids: the only user of the `tokenizers` library.

Knows a model's longest input; does not know batches, prompts' names or padding.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as HfTokenizer

from shared.contracts import IntMatrix, TextInput, TokenPair, Tokens, TruncationSide
from shared.errors import BeyondMemory, InputTooLong, InvalidArtefact, InvalidInput


@dataclass(frozen=True, slots=True)
class Spelling:
    """The tokens of one text. spans: (T, 4) int32, texts: T of them, both as in TokenizeResult."""

    spans: IntMatrix
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)


class Tokenizer:
    """Encodes texts as the model's own tokenizer does, special tokens included. Thread-safe.

    Truncation is state of the underlying object, so each way of truncating has an object of its own:
    requests that differ in it never see each other's setting.

    usable_tokens: what there is memory for, if that is less than the model reads. Texts are cut where
    the model stops reading and nowhere else, so one that is still longer then is BeyondMemory.
    """

    def __init__(self, serialized: str, max_tokens: int, usable_tokens: int | None = None) -> None:
        self.max_tokens = max_tokens
        self.usable_tokens = max_tokens if usable_tokens is None else min(max_tokens, usable_tokens)
        self._serialized = serialized
        self._lock = threading.Lock()
        self._by_side: dict[TruncationSide | None, HfTokenizer] = {}
        self._vocabulary_size = self._for_side("right").get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_file(cls, path: Path, max_tokens: int, usable_tokens: int | None = None) -> Tokenizer:
        """Read a `tokenizer.json`. Raises InvalidArtefact."""
        try:
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
    ) -> list[list[int]]:
        """Ids of each input, at most `max_tokens` long.

        prefix: prepended to texts; inputs that are ids already are taken as they are.
        Raises InputTooLong if `truncate` is off and an input does not fit, InvalidInput for ids
        that are not in the vocabulary.
        """
        tokenizer = self._for_side(side if truncate else None)
        texts = [prefix + item for item in inputs if isinstance(item, str)]
        encoded = iter(tokenizer.encode_batch_fast(texts))
        result = []
        for index, item in enumerate(inputs):
            if isinstance(item, str):
                ids = next(encoded).ids
            else:
                ids = self._checked_ids(item, index)
                if truncate:
                    ids = ids[: self.max_tokens] if side == "right" else ids[-self.max_tokens :]
            self._check_length(ids, f"input[{index}]")
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
    ) -> list[TokenPair]:
        """The query with each document, at most `max_tokens` long; each text is tokenised once.

        Too long a pair loses tokens of the longer text first. max_document_tokens: documents are cut to
        it before. Raises InputTooLong if `truncate` is off and a pair does not fit.
        """
        first = self._plain(query)
        pairing = self._for_side(side if truncate else None)
        result = []
        for index, second in enumerate(
            self._for_side(None).encode_batch_fast(list(documents), add_special_tokens=False)
        ):
            if max_document_tokens is not None:
                second.truncate(max_document_tokens, direction=side)
            pair = _pair_of(pairing.post_process(first, second))
            self._check_length(pair.ids, f"documents[{index}]")
            result.append(pair)
        return result

    def encode_each(
        self,
        inputs: Sequence[str | tuple[str, str]],
        *,
        truncate: bool = True,
        side: TruncationSide = "right",
    ) -> list[Tokens]:
        """Each text or pair of texts, at most `max_tokens` long. Raises InputTooLong."""
        encoded = self._for_side(side if truncate else None).encode_batch_fast(list(inputs))
        result: list[Tokens] = []
        for index, (item, encoding) in enumerate(zip(inputs, encoded, strict=True)):
            self._check_length(encoding.ids, f"inputs[{index}]")
            result.append(encoding.ids if isinstance(item, str) else _pair_of(encoding))
        return result

    def spell(
        self, texts: Sequence[str], *, prefix: str = "", special_tokens: bool = True
    ) -> list[Spelling]:
        """The tokens of each text, `prefix` before it, uncut. special_tokens: also those of no text."""
        whole = [prefix + text for text in texts]
        encoded = self._for_side(None).encode_batch(whole, add_special_tokens=special_tokens)
        return [_spelling_of(*each) for each in zip(whole, encoded, strict=True)]

    def _plain(self, text: str) -> Encoding:
        return self._for_side(None).encode(text, add_special_tokens=False)

    def _check_length(self, ids: Sequence[int], field: str) -> None:
        if len(ids) > self.usable_tokens < self.max_tokens:
            raise BeyondMemory(
                f"the input has {len(ids)} tokens, the memory of this service is enough for "
                f"{self.usable_tokens} of the {self.max_tokens} that the model reads: send less",
                field=field,
            )
        if len(ids) > self.max_tokens:
            raise InputTooLong(
                f"the input has {len(ids)} tokens, the model reads {self.max_tokens}: "
                "shorten it or set truncate",
                field=field,
            )

    def _checked_ids(self, ids: Sequence[int], index: int) -> list[int]:
        if not all(0 <= token < self._vocabulary_size for token in ids):
            raise InvalidInput(
                f"token ids must be between 0 and {self._vocabulary_size - 1}, this model's vocabulary",
                field=f"input[{index}]",
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


def _spelling_of(text: str, encoding: Encoding) -> Spelling:
    offsets, special = encoding.offsets, encoding.special_tokens_mask
    byte_at = np.cumsum([0, *(len(character.encode()) for character in text)])
    bytes_of = byte_at[np.array(offsets, np.intp).reshape(-1, 2)]
    spans = np.column_stack((encoding.ids, special, bytes_of)).astype(np.int32)
    parts = zip(encoding.tokens, special, offsets, strict=True)
    return Spelling(spans, [name if is_special else text[slice(*at)] for name, is_special, at in parts])


def _pair_of(encoding: Encoding) -> TokenPair:
    return TokenPair(encoding.ids, encoding.type_ids)
