"""What all results have: where the time went, which fields are arrays, which have an entry an item.

Does not know the operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.cards import Device

ResultT = TypeVar("ResultT", bound="Result")

FloatMatrix: TypeAlias = NDArray[np.float32]
IntMatrix: TypeAlias = NDArray[np.int32]
DoubleMatrix: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds; inference is wall time of its batches, queue the rest."""

    tokenization_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0


class Result:
    """What all results have.

    arrays: which of its fields are arrays, with their type and the shape of a row (None: any length), as
    they go over the wire.
    joined: its fields with an entry an item (or a token): what parts of a request have in turn.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # subclasses are dataclasses
    arrays: ClassVar[Mapping[str, tuple[str, tuple[int | None, ...]]]]
    joined: ClassVar[tuple[str, ...]]

    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings
    device: Device
    cut: tuple[int, ...]

    @property
    def total_tokens(self) -> int:
        """Real tokens fed, of all inputs."""
        return sum(self.token_counts)

    @property
    def rows(self) -> int:
        """How many entries the fields of `joined` have."""
        return len(self.token_counts)
