"""Tokenising: texts in, their tokens out, without truncation.

Does not know HTTP, tokenizers or batches.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from shared.cards import Device
from shared.contracts.request import Request
from shared.contracts.result import IntMatrix, Result, Timings
from shared.errors import EmptyInput


class TokenizeResult(Result, msgspec.Struct, frozen=True):
    """One row of `spans` and one of `texts` per token, in the order of the inputs.

    spans: (T, 4) int32, columns id, is special (1 or 0), start, stop. start and stop are byte offsets in
        the UTF-8 of prompt and input; they have no meaning for a special token.
    texts: (T) the text between start and stop; for a special token its name.
    token_counts: tokens per input. cut: always empty, because nothing is truncated.
    """

    arrays: ClassVar = {"spans": ("<i4", (4,))}
    joined = ("spans", "texts")

    spans: IntMatrix
    texts: tuple[str, ...]
    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings = msgspec.field(default_factory=Timings)
    device: Device = "cpu"
    cut: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Number of tokens: the joined fields have one entry per token, not per input."""
        return self.total_tokens


class TokenizeRequest(Request[TokenizeResult], frozen=True):
    """Tokenise each of `inputs` without truncation; a text may be empty.

    special_tokens: include those that the model's tokenizer adds. prompt_name: as in EmbedRequest.
    Raises EmptyInput without inputs.
    """

    operation, result, items, items_as_told = "tokenize", TokenizeResult, "inputs", "inputs"
    runs_model = False

    model: str
    inputs: tuple[str, ...]
    special_tokens: bool = True
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise EmptyInput("inputs is empty: give at least one text", field="inputs")
