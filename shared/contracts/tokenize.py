"""Tokenising: texts in, their tokens out, uncut.

Does not know HTTP, tokenizers or batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from shared.cards import Device
from shared.contracts.request import Request
from shared.contracts.result import IntMatrix, Result, Timings
from shared.errors import EmptyInput


@dataclass(frozen=True, slots=True)
class TokenizeResult(Result):
    """A row and a text for each token, those of input 0 first: token_counts says how many an input has.

    spans: (T, 4) int32, columns id, whether it is special (1 or 0), start, stop. The last two are bytes
    of the UTF-8 of the input with its prompt, and mean nothing of a special token.
    texts: what stands there; of a special token its name. cut: none, since inputs are told uncut.
    """

    arrays: ClassVar = {"spans": ("<i4", (4,))}
    joined = ("spans", "texts")

    spans: IntMatrix
    texts: tuple[str, ...]
    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings = field(default_factory=Timings)
    device: Device = "cpu"
    cut: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """One for each token, not for each input."""
        return self.total_tokens


@dataclass(frozen=True, slots=True)
class TokenizeRequest(Request[TokenizeResult]):
    """Tell the tokens of each of `inputs`, uncut; a text may be empty.

    special_tokens: those that the model's tokenizer adds, too. prompt_name: as in EmbedRequest.
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
