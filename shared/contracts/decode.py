"""Decoding: token ids in, their texts out.

Does not know HTTP, tokenizers or batches.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from shared.cards import Device
from shared.contracts.request import Request
from shared.contracts.result import Result, Timings
from shared.errors import EmptyInput


class DecodeResult(Result, msgspec.Struct, frozen=True):
    """texts: one per input. token_counts: number of ids per input. cut: always empty."""

    arrays: ClassVar = {}
    joined = ("texts",)

    texts: tuple[str, ...]
    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings = msgspec.field(default_factory=Timings)
    device: Device = "cpu"
    cut: tuple[int, ...] = ()


class DecodeRequest(Request[DecodeResult], frozen=True):
    """Decode each of `inputs`, a non-empty sequence of ids of the model's vocabulary of any length.

    skip_special_tokens: leave special tokens out of the text. Raises EmptyInput without inputs, or for
    an input without ids.
    """

    operation, result, items, items_as_told = "decode", DecodeResult, "inputs", "ids"
    runs_model = False

    model: str
    inputs: tuple[tuple[int, ...], ...]
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if not self.inputs:
            raise EmptyInput("ids is empty: give at least one id", field="ids")
        for index, ids in enumerate(self.inputs):
            if not ids:
                raise EmptyInput(f"ids[{index}] is empty: give an id", field=f"ids[{index}]")
