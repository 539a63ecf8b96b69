"""Embedding: texts in, one vector per text out.

Does not know HTTP, models or batches.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal, TypeAlias

import msgspec

from shared.cards import Device
from shared.contracts.request import Request
from shared.contracts.result import FloatMatrix, Result, Timings
from shared.contracts.texts import TextInput, TruncationSide, check_not_empty
from shared.errors import InvalidInput

InputType: TypeAlias = Literal["query", "document", "classification", "clustering"]
"""What a text is embedded for."""
_PROMPTS: dict[InputType, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage"),
    "classification": ("classification",),
    "clustering": ("clustering",),
}
"""The names that models give to the prompt of each input type, preferred name first."""


class EmbedResult(Result, msgspec.Struct, frozen=True):
    """vectors: (N, D) float32, row i belongs to input i. token_counts: per input, without padding.

    device: where it ran; if the request was split, the device of the first part. max_tokens: the most
    tokens that the model reads of an input; longer inputs were cut to it; 0 if unknown. cut: indices of
    the inputs that were cut, ascending. warnings: sentences for the caller. failed: (index, message) of
    each input that failed by itself; its row is zeros. int8_range: the number that becomes 127 where the
    vectors are asked for as int8.
    """

    arrays: ClassVar = {"vectors": ("<f4", (None,))}
    joined = ("vectors",)

    vectors: FloatMatrix
    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings = msgspec.field(default_factory=Timings)
    device: Device = "cpu"
    max_tokens: int = 0
    cut: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    failed: tuple[tuple[int, str], ...] = ()
    int8_range: float = 1.0


class EmbedRequest(Request[EmbedResult], frozen=True):
    """Embed `inputs` with `model`.

    dimensions: length of each returned vector; None for the model's own.
    normalize: scale each vector to unit length (after truncation to `dimensions`).
    truncate: cut inputs longer than the model reads; if False, they raise InputTooLong.
    truncation_side: the side that is cut off.
    prompt_name: one of the manifest's prompts, prepended to each text; "" for none, None for the model's
        default.
    input_type: without a prompt_name, selects the model's prompt for this type, if it has one.

    Raises EmptyInput without inputs or for an empty one, InvalidInput for dimensions below 1.
    """

    operation, result, items, items_as_told = "embed", EmbedResult, "inputs", "input"

    model: str
    inputs: tuple[TextInput, ...]
    dimensions: int | None = None
    normalize: bool = True
    truncate: bool = True
    truncation_side: TruncationSide = "right"
    prompt_name: str | None = None
    input_type: InputType | None = None

    def __post_init__(self) -> None:
        check_not_empty(self.inputs)
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidInput("dimensions must be 1 or more", field="dimensions")


def prompt_for(input_type: InputType | None, prompts: Collection[str]) -> str | None:
    """The name in `prompts` of the prompt for `input_type`; None if there is none."""
    meant = _PROMPTS[input_type] if input_type else ()
    return next((name for name in meant if name in prompts), None)
