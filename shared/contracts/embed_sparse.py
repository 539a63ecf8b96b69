"""Sparse embedding: texts in, the weights of some words of the vocabulary per text out.

Does not know HTTP, models or batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from shared.cards import Device
from shared.contracts.embed import InputType
from shared.contracts.request import Request
from shared.contracts.result import FloatVector, IntVector, ManyRows, Timings
from shared.contracts.texts import TextInput, TruncationSide, check_not_empty


class SparseRow(msgspec.Struct, frozen=True):
    """One text's numbers that are not 0. indices: (K,) int32, ascending. values: (K,) float32."""

    indices: IntVector
    values: FloatVector


class EmbedSparseResult(ManyRows, msgspec.Struct, frozen=True):
    """indices (K,) int32 and values (K,) float32 of all inputs, one behind the other.

    counts: how many of them each input has. An index is a token id of the model's vocabulary. Other
    fields as in EmbedResult. Raises ValueError if counts do not fit.
    """

    arrays: ClassVar = {"indices": ("<i4", ()), "values": ("<f4", ())}
    joined = ("indices", "values")

    indices: IntVector
    values: FloatVector
    counts: tuple[int, ...]
    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings = msgspec.field(default_factory=Timings)
    device: Device = "cpu"
    cut: tuple[int, ...] = ()

    @classmethod
    def of(cls, rows: Sequence[SparseRow], **told: Any) -> EmbedSparseResult:
        """The result of these rows. told: its other fields."""
        indices = np.concatenate([row.indices for row in rows])
        values = np.concatenate([row.values for row in rows])
        counts = tuple(len(row.values) for row in rows)
        return cls(indices, values, counts, **told)

    @property
    def per_input(self) -> Iterator[SparseRow]:
        """The numbers of each input, in order."""
        for place in self.places:
            yield SparseRow(self.indices[place], self.values[place])


class EmbedSparseRequest(Request[EmbedSparseResult], frozen=True):
    """Embed `inputs` with `model`, a sparse encoder. Fields as in EmbedRequest.

    Raises EmptyInput without inputs or for an empty one.
    """

    operation, result, items, items_as_told = "embed_sparse", EmbedSparseResult, "inputs", "input"

    model: str
    inputs: tuple[TextInput, ...]
    truncate: bool = True
    truncation_side: TruncationSide = "right"
    prompt_name: str | None = None
    input_type: InputType | None = None

    def __post_init__(self) -> None:
        check_not_empty(self.inputs)
