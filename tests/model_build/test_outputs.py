"""What cutting and rounding do to the order of similarities, on vectors made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from model_build.outputs import judge_outputs, largest_int8
from shared.contracts import FloatMatrix


def unit(rows: list[list[float]]) -> FloatMatrix:
    vectors = np.array(rows, np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_the_order_of_similarities_is_compared_with_the_originals() -> None:
    """The same vectors keep it, and so does int8; bits and a short cut lose what they cannot hold."""
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((30, 64)).tolist())
    kept = judge_outputs(vectors, vectors, [8, 32])
    assert list(kept) == [
        "float",
        "32 dimensions",
        "8 dimensions",
        "int8",
        "binary",
        "float query, binary documents",
    ]
    assert kept["float"] == 1
    assert kept["int8"] > 0.99
    assert kept["int8"] > kept["float query, binary documents"] > kept["binary"] > kept["8 dimensions"]
    assert kept["32 dimensions"] > kept["8 dimensions"]


def test_forms_that_cannot_tell_texts_apart_have_no_order() -> None:
    """All numbers are positive, so all bits are one: not a number, and no warning."""
    vectors = unit([[1, 2], [2, 1], [1, 1]])
    assert np.isnan(judge_outputs(vectors, vectors, [])["binary"])


@pytest.mark.parametrize(("row", "largest"), [([1.0, 0.0], 127), ([1.0] * 16, 32), ([-3.0, 4.0], 102)])
def test_how_much_of_int8_is_used_is_told(row: list[float], largest: int) -> None:
    """The more dimensions, the smaller their numbers."""
    assert largest_int8(unit([row])) == largest
