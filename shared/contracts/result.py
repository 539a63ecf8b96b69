"""Base class of all results: timings, which fields are arrays, and which have one entry per item.

Does not know the operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self, TypeAlias, TypeVar, cast

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from shared.cards import Device

ResultT = TypeVar("ResultT", bound="Result")

FloatMatrix: TypeAlias = NDArray[np.float32]
IntMatrix: TypeAlias = NDArray[np.int32]
DoubleMatrix: TypeAlias = NDArray[np.float64]
FloatVector: TypeAlias = NDArray[np.float32]
IntVector: TypeAlias = NDArray[np.int32]


class Timings(msgspec.Struct, frozen=True):
    """Durations of a request in seconds. inference_s: wall time of its batches; queue_s: the rest."""

    tokenization_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0


class Result:
    """Base of all results, which are msgspec Structs.

    arrays: field -> numpy dtype and shape of a row (None: any length), as the codec sends them.
    joined: the fields with one entry per item (or token). If a request is split, the parts' entries are
    concatenated. joined_by_item: fields beside `token_counts` with one entry per item, where `joined`
    have others.
    """

    __slots__ = ()
    arrays: ClassVar[Mapping[str, tuple[str, tuple[int | None, ...]]]]
    joined: ClassVar[tuple[str, ...]]
    joined_by_item: ClassVar[tuple[str, ...]] = ()

    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings
    device: Device
    cut: tuple[int, ...]

    def replaced(self, **values: Any) -> Self:
        """The same with other values of these fields."""
        result: Self = replace(cast(Any, self), **values)  # this class alone is no Struct
        return result

    @property
    def total_tokens(self) -> int:
        """Tokens of all inputs together, without padding."""
        return sum(self.token_counts)

    @property
    def rows(self) -> int:
        """Number of entries of each field in `joined`."""
        return len(self.token_counts)


class ManyRows(Result):
    """A result whose inputs have several rows each, or none: all of them one behind the other.

    counts: how many each input has. Raises ValueError unless there is one for each, none negative.
    """

    __slots__ = ()
    joined_by_item = ("counts",)

    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.token_counts) or any(count < 0 for count in self.counts):
            raise ValueError("counts do not fit the inputs")

    @property
    def rows(self) -> int:
        """How many there are: the joined arrays have one entry each."""
        return sum(self.counts)

    @property
    def places(self) -> Iterator[slice]:
        """Where the rows of each input are, in order."""
        start = 0
        for count in self.counts:
            yield slice(start, start + count)
            start += count
