"""Classification: texts or pairs in, one score per label out.

Does not know HTTP, models or batches.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from shared.cards import Device
from shared.contracts.request import Request
from shared.contracts.result import DoubleMatrix, Result, Timings
from shared.contracts.texts import TruncationSide
from shared.errors import EmptyInput


class PredictResult(Result, msgspec.Struct, frozen=True):
    """scores: (N, L) float64, row i belongs to input i, column j to labels[j].

    token_counts: tokens per input, without padding. cut: indices of the inputs that were cut, ascending.
    """

    arrays: ClassVar = {"scores": ("<f8", (None,))}
    joined = ("scores",)

    scores: DoubleMatrix
    token_counts: tuple[int, ...]
    model: str
    revision: str
    labels: tuple[str, ...]
    timings: Timings = msgspec.field(default_factory=Timings)
    device: Device = "cpu"
    cut: tuple[int, ...] = ()


class PredictRequest(Request[PredictResult], frozen=True):
    """Score each of `inputs`, texts or pairs of texts, with a cross-encoder or classifier.

    raw_scores: logits instead of probabilities. truncate, truncation_side: as in RerankRequest.
    Raises EmptyInput without inputs, for an empty text, or for a pair whose texts are both empty.
    """

    operation, result, items, items_as_told = "predict", PredictResult, "inputs", "inputs"

    model: str
    inputs: tuple[str | tuple[str, str], ...]
    raw_scores: bool = False
    truncate: bool = True
    truncation_side: TruncationSide = "right"

    def __post_init__(self) -> None:
        if not self.inputs:
            raise EmptyInput("inputs is empty: give at least one text", field="inputs")
        for index, item in enumerate(self.inputs):
            if not (item if isinstance(item, str) else any(item)):  # of a pair, one may be empty
                raise EmptyInput(f"inputs[{index}] is empty: give a text", field=f"inputs[{index}]")
