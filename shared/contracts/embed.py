"""Embedding: texts in, a vector for each out.

Does not know HTTP, models or batches.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from shared.cards import Device
from shared.contracts.request import Request
from shared.contracts.result import FloatMatrix, Result, Timings
from shared.contracts.texts import TextInput, TruncationSide
from shared.errors import EmptyInput, InvalidInput

InputType: TypeAlias = Literal["query", "document", "classification", "clustering"]
"""What a text is embedded for."""
_PROMPTS: dict[InputType, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage"),
    "classification": ("classification",),
    "clustering": ("clustering",),
}
"""What models call the prompt made for it, first choice first."""


@dataclass(frozen=True, slots=True)
class EmbedResult(Result):
    """vectors: (N, D) float32, row i belongs to input i. token_counts: real tokens fed, per input.

    device: what served it; of parts, the first one's. max_tokens: what the model reads of an input, and
    longer ones were cut to; 0 if unknown. cut: the inputs that were cut, ascending. warnings: what the
    caller should know, in sentences. failed: inputs that failed alone, and why; their rows are zeros.
    """

    arrays: ClassVar = {"vectors": ("<f4", (None,))}
    joined = ("vectors",)

    vectors: FloatMatrix
    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings = field(default_factory=Timings)
    device: Device = "cpu"
    max_tokens: int = 0
    cut: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    failed: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class EmbedRequest(Request[EmbedResult]):
    """Embed `inputs` with `model`.

    dimensions: length of each returned vector; None for the model's own.
    normalize: scale each vector to unit length (after truncation to `dimensions`).
    truncate: cut inputs longer than the model reads; if False they are an InputTooLong.
    truncation_side: the side that is cut off.
    prompt_name: one of the manifest's prompts, prepended to each text; "" for none, None for the model's
        default.
    input_type: without a prompt_name, the prompt made for this, if the model has one.
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
        if not self.inputs:
            raise EmptyInput("there is nothing to embed: give at least one input", field="input")
        for index, item in enumerate(self.inputs):
            if not item:
                raise EmptyInput("an input is empty: give a text", field=f"input[{index}]")
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidInput("dimensions must be 1 or more", field="dimensions")


def prompt_for(input_type: InputType | None, prompts: Collection[str]) -> str | None:
    """The name of the prompt that a model with `prompts` puts before such texts; None if it has none."""
    meant = _PROMPTS[input_type] if input_type else ()
    return next((name for name in meant if name in prompts), None)
