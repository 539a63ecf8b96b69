"""int8 and uint8 of unit vectors, by a model's range, against sentence-transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from shared.dialects.number_types import NumberType, convert
from shared.vectors import finish

VECTORS = finish(np.random.default_rng(0).standard_normal((40, 96)).astype(np.float32), None, True)


@pytest.mark.parametrize("largest", [1.0, 0.5, 0.3, 0.05])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_integers_are_those_of_sentence_transformers_with_ranges_that_mean_the_same(
    kind: NumberType, largest: float
) -> None:
    """It takes the floor of 256 parts of a range, so the range is that of the rounding.

    It clips at -128, the service at -127, and a number on an edge may fall on either side.
    """
    step = largest / 127
    ranges = np.array([[-128.5 * step] * 96, [126.5 * step] * 96], np.float32)
    zero = 128 if kind == "uint8" else 0
    truth = np.maximum(quantize_embeddings(VECTORS, kind, ranges=ranges).astype(int) - zero, -127)
    got = convert(VECTORS, kind, largest)
    assert got.dtype == np.dtype(kind)
    assert (got.astype(int) - zero != truth).mean() < 1e-3
    exact = np.clip(VECTORS, -largest, largest)
    np.testing.assert_allclose((got - float(zero)) * step, exact, atol=step * 0.501)


def test_bits_and_floats_have_no_range() -> None:
    """The same bytes with any."""
    for kind in ("float", "binary", "ubinary"):
        assert np.array_equal(convert(VECTORS, kind), convert(VECTORS, kind, 0.1))
