from __future__ import annotations

import numpy as np
import pytest

from shared.vectors import (
    DenseLayer,
    Poolings,
    apply_layer,
    finish,
    pool,
    pooling_divisors,
    pooling_weights,
    poolings_of,
    rows_not_finite,
    sigmoid,
    softmax,
)

HIDDEN = np.array([[[1, 0], [3, 4], [9, 9]], [[2, 6], [0, 0], [0, 0]]], np.float32)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", [[2, 2], [2, 6]]),
        ("cls", [[1, 0], [2, 6]]),
        ("max", [[3, 4], [2, 6]]),
        ("last", [[3, 4], [2, 6]]),
        ("weighted_mean", [[7 / 3, 8 / 3], [2, 6]]),
        ("mean_sqrt_length", [[4 / 2**0.5, 4 / 2**0.5], [2, 6]]),
        (("max", "cls"), [[3, 4, 1, 0], [2, 6, 2, 6]]),
    ],
)
def test_pooling_never_reads_padding(pooling: Poolings, expected: list[list[float]]) -> None:
    """Row 0 has two tokens, row 1 has one; what lies beyond them changes nothing."""
    np.testing.assert_allclose(pool(HIDDEN, [2, 1], pooling), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "pooling", ["mean", "cls", "last", "weighted_mean", "mean_sqrt_length", ("last", "mean")], ids=str
)
def test_weighted_sums_are_the_poolings(pooling: Poolings) -> None:
    """What an engine adds up in its graph is what `pool` does, also where texts are padded further."""
    hidden = np.random.default_rng(0).standard_normal((3, 9, 4)).astype(np.float32)
    lengths, kinds = [1, 7, 4], poolings_of(pooling)
    sums = pooling_weights(lengths, kinds, 9) @ hidden
    pooled = (sums / pooling_divisors(lengths, kinds)).reshape(3, -1)
    np.testing.assert_allclose(pooled, pool(hidden, lengths, pooling), rtol=1e-5)


def test_a_row_is_the_same_bits_alone_and_among_others() -> None:
    """Mean pooling must not sum in an order that depends on batch-mates."""
    hidden = np.random.default_rng(0).standard_normal((32, 57, 384)).astype(np.float32)
    lengths = [57 - row for row in range(32)]
    together = pool(hidden, lengths, "mean")
    for row, length in enumerate(lengths):
        alone = pool(hidden[row : row + 1, :length], [length], "mean")
        assert np.array_equal(alone[0], together[row])


def test_truncation_comes_before_normalisation() -> None:
    """A shortened vector has unit length again."""
    vectors = finish(np.array([[3, 4, 12]], np.float32), 2, True)
    np.testing.assert_allclose(vectors, [[0.6, 0.8]], rtol=1e-6)


def test_raw_vectors_keep_their_length_and_zeros_stay_zero() -> None:
    """Normalising is optional, and never divides by zero."""
    assert finish(np.array([[3, 4]], np.float32), None, False).tolist() == [[3, 4]]
    assert finish(np.zeros((1, 2), np.float32), None, True).tolist() == [[0, 0]]


def test_a_dense_layer_is_torchs_linear_then_its_activation() -> None:
    """weight is (out, in), as torch stores it."""
    layer = DenseLayer(np.array([[1, 2], [0, -1]], np.float32), np.array([1, 1], np.float32), "relu")
    assert apply_layer(np.array([[1, 3]], np.float32), layer).tolist() == [[8, 0]]


def test_a_sigmoid_keeps_its_digits() -> None:
    """In float32 both were exactly 1; the right values are from mpmath."""
    scores = sigmoid(np.array([18, 19, -18], np.float32))
    right = [0.9999999847700205, 0.9999999943972036, 1.5229979512760347e-8]
    assert scores.tolist() == pytest.approx(right, rel=1e-15)


@pytest.mark.parametrize(
    ("number", "broken"),
    [(0.0, []), (1e18, []), (np.nan, [1]), (np.inf, [1]), (-np.inf, [1]), (3e38, [1])],
)
def test_a_row_without_a_finite_length_is_told(number: float, broken: list[int]) -> None:
    """The square of the last one is none: scaled to unit length, that row would be zeros."""
    rows = np.array([[1, 2], [number, 1]], np.float32)
    assert rows_not_finite(rows) == broken


def test_sigmoid_and_softmax_do_not_overflow() -> None:
    """Probabilities at the ends of float32's range, too."""
    logits = np.array([[-1e30, 0.0, 1e30]], np.float32)
    assert sigmoid(logits).tolist() == [[0.0, 0.5, 1.0]]
    assert softmax(logits).tolist() == [[0.0, 0.0, 1.0]]
    assert sigmoid(np.array([np.log(3)], np.float32))[0] == pytest.approx(0.75)
    np.testing.assert_allclose(
        softmax(np.log(np.array([[1, 3]], np.float32))), [[0.25, 0.75]], rtol=1e-6
    )
