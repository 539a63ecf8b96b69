"""Gates and rank agreement, without a model."""

from __future__ import annotations

import numpy as np
import pytest

from model_build.evaluate import rank_agreements, shortfalls
from shared.contracts import FloatMatrix
from shared.models.manifest import Quality


def embedding(cosine: float = 0.999, difference: float = 0.0) -> Quality:
    return Quality(cosine_mean=cosine, batch_max_abs_diff=difference, load_s=0.1, inputs_per_s=10)


def cross_encoder(agreement: float) -> Quality:
    return Quality(rank_agreement_mean=agreement, batch_max_abs_diff=0.0, load_s=0.1, inputs_per_s=10)


def test_a_good_model_passes_every_gate() -> None:
    """Nothing falls short at the limit itself."""
    assert shortfalls(embedding(0.99), "cpu-int8", 0.99, 0.95) == []
    assert shortfalls(cross_encoder(0.95), "cpu-int8", 0.99, 0.95) == []


@pytest.mark.parametrize("cosine", [0.98, float("nan")])
def test_a_low_or_undefined_cosine_falls_short(cosine: float) -> None:
    """A model of NaNs compares false with everything and must not slip through."""
    (message,) = shortfalls(embedding(cosine), "cpu-int8", 0.99, 0.95)
    assert "--min-cosine" in message


@pytest.mark.parametrize(
    ("agreement", "said"),
    [
        (0.94, "mean rank agreement 0.9400 is below --min-rank-agreement 0.95"),
        (float("nan"), "its ranking cannot be measured (--min-rank-agreement): it gives all"),
    ],
)
def test_a_low_or_undefined_agreement_falls_short(agreement: float, said: str) -> None:
    """Scores that are all alike rank nothing: NaN, which falls short too, in words."""
    (message,) = shortfalls(cross_encoder(agreement), "cpu-int8", 0.99, 0.95)
    assert message.startswith(said)


@pytest.mark.parametrize("difference", [1e-6, float("nan")])
def test_a_result_that_depends_on_its_batch_falls_short(difference: float) -> None:
    """1e-6 is already too much, and NaN too."""
    (message,) = shortfalls(embedding(difference=difference), "cpu-fp32", 0.99, 0.95)
    assert "batch" in message


def matrix(*columns: list[float]) -> FloatMatrix:
    return np.array(columns, np.float32).T


def test_ranks_are_compared_within_each_query_and_label() -> None:
    """The first query's documents agree, the second's are turned round; labels count for themselves."""
    a = matrix([1, 2, 3, 1, 2], [1, 2, 3, 1, 2])
    b = matrix([10, 20, 30, 5, 4], [10, 20, 30, 4, 5])
    assert rank_agreements(a, b, [3, 2]) == pytest.approx([1, 1, -1, 1])


def test_scores_that_do_not_differ_agree_with_nothing() -> None:
    """NaN, and not a warning."""
    flat = matrix([1.0, 1.0, 1.0])
    assert np.isnan(rank_agreements(flat, matrix([1, 2, 3]), [3])).all()
    assert np.isnan(rank_agreements(matrix([1, 2, 3]), flat, [3])).all()
