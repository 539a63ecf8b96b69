"""Requests and results that cross modules: frozen, validated once, dialect-free.

Does not know HTTP, models or batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared.errors import EmptyInput, InvalidInput

TruncationSide: TypeAlias = Literal["right", "left"]
TextInput: TypeAlias = str | tuple[int, ...]
"""A text, or ids of the model's own vocabulary (special tokens included)."""

FloatMatrix: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Embed `inputs` with `model`.

    dimensions: length of each returned vector; None for the model's own.
    normalize: scale each vector to unit length (after truncation to `dimensions`).
    truncate: cut inputs longer than the model reads; if False they are an InputTooLong.
    truncation_side: the side that is cut off.
    prompt_name: one of the manifest's prompts, prepended to each text; None for the model's default.
    """

    model: str
    inputs: tuple[TextInput, ...]
    dimensions: int | None = None
    normalize: bool = True
    truncate: bool = True
    truncation_side: TruncationSide = "right"
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise EmptyInput("there is nothing to embed: give at least one input", field="input")
        for index, item in enumerate(self.inputs):
            if not item:
                raise EmptyInput("an input is empty: give a text", field=f"input[{index}]")
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidInput("dimensions must be 1 or more", field="dimensions")


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds; inference is wall time of its batches, queue the rest."""

    tokenization_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """vectors: (N, D) float32, row i belongs to input i. token_counts: real tokens fed, per input."""

    vectors: FloatMatrix
    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings = field(default_factory=Timings)

    @property
    def total_tokens(self) -> int:
        return sum(self.token_counts)


@dataclass(frozen=True, slots=True)
class ModelState:
    """What the cache knows of a model. reason: why it failed, safe to show; None otherwise."""

    name: str
    state: Literal["cold", "loading", "warm", "failed"]
    reason: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What callers may know of a published model. created: Unix seconds, 0 if unknown."""

    name: str
    revision: str
    target: str
    architecture: str
    pooling: str
    dimensions: int
    max_tokens: int
    prompts: tuple[str, ...] = ()
    created: int = 0
