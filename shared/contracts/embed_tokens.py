"""Late interaction: texts in, one vector per token out.

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
from shared.contracts.result import FloatMatrix, ManyRows, Timings
from shared.contracts.texts import TextInput, TruncationSide, check_not_empty


class EmbedTokensResult(ManyRows, msgspec.Struct, frozen=True):
    """vectors: (K, D) float32 of the tokens of all inputs, one behind the other.

    counts: how many of them each input has: no more than it has tokens, since those that a document's
    skiplist names have none. Other fields as in EmbedResult. Raises ValueError if counts do not fit.
    """

    arrays: ClassVar = {"vectors": ("<f4", (None,))}
    joined = ("vectors",)

    vectors: FloatMatrix
    counts: tuple[int, ...]
    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings = msgspec.field(default_factory=Timings)
    device: Device = "cpu"
    cut: tuple[int, ...] = ()

    @classmethod
    def of(cls, rows: Sequence[FloatMatrix], **told: Any) -> EmbedTokensResult:
        """The result of each input's (T, D) vectors. told: its other fields."""
        return cls(np.concatenate(rows), tuple(map(len, rows)), **told)

    @property
    def per_input(self) -> Iterator[FloatMatrix]:
        """The (T, D) vectors of each input, in order."""
        for place in self.places:
            yield self.vectors[place]


class EmbedTokensRequest(Request[EmbedTokensResult], frozen=True):
    """Embed `inputs` with `model`, a late-interaction model. Fields as in EmbedRequest.

    input_type: "query" makes queries of the inputs; anything else, documents. prompt_name: "query" and
    "document" do the same. Raises EmptyInput without inputs or for an empty one.
    """

    operation, result, items, items_as_told = "embed_tokens", EmbedTokensResult, "inputs", "input"

    model: str
    inputs: tuple[TextInput, ...]
    truncate: bool = True
    truncation_side: TruncationSide = "right"
    prompt_name: str | None = None
    input_type: InputType | None = None

    def __post_init__(self) -> None:
        check_not_empty(self.inputs)
