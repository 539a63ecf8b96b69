"""By what number int8 answers are scaled: from vectors made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from model_build.outputs import largest_int8
from model_build.ranges import ranges_of
from shared.contracts import FloatMatrix
from shared.vectors import finish


def unit(rows: list[list[float]]) -> FloatMatrix:
    return finish(np.array(rows, np.float32), None, normalize=True)


@pytest.mark.parametrize(
    ("rows", "stated", "expected"),
    [
        # 0.1 in each of 100 dimensions, 1 / sqrt(50) in a half; a quarter more, in steps of 1/200.
        ([[1.0] * 100], (), {100: 0.125, 50: 0.18, 25: 0.25}),
        ([[1.0] * 100], (64,), {100: 0.125, 64: 0.16, 50: 0.18, 25: 0.25}),
        ([[0.0] * 31 + [1.0]], (), {32: 1.0, 16: 1.0}),  # what is left of it has no numbers
        ([[1.0] * 16 + [8.0] * 16], (), {32: 0.3125, 16: 0.3125}),
        ([[3.0, -4.0]], (), {2: 1.0}),  # as short as it may be
        ([[3.0, -4.0]], (512,), {2: 1.0}),  # longer than the vectors
    ],
)
def test_ranges_are_a_quarter_more_than_the_largest_number(
    rows: list[list[float]], stated: tuple[int, ...], expected: dict[int, float]
) -> None:
    """Of each length, and never less than of a longer one."""
    assert ranges_of(unit(rows), stated) == pytest.approx(expected, abs=0.0051)


def test_the_calibrating_vectors_use_most_of_int8() -> None:
    """98 of 127, and with one range for all models 13."""
    vectors = unit([[1.0] * 100])
    assert largest_int8(vectors, ranges_of(vectors, ())[100]) == 98
    assert largest_int8(vectors) == 13
