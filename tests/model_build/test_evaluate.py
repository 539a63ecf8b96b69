"""Gates and rank agreement, without a model."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from model_build.evaluate import rank_agreements
from model_build.gates import Gates, gates_of, shortfalls
from shared.cards import Task
from shared.contracts import FloatMatrix
from shared.models.manifest import Quality, Target

INT8 = gates_of("cpu-int8")


def embedding(cosine: float = 0.9999, difference: float = 0.0, minimum: float = 0.9999) -> Quality:
    return Quality(
        cosine_mean=cosine,
        cosine_p01=cosine,
        cosine_min=minimum,
        cosine_centred=0.9999,
        cosine_low_share=0.0,
        batch_max_abs_diff=difference,
        load_s=0.1,
        inputs_per_s=10,
    )


def cross_encoder(agreement: float, difference: float = 0.0) -> Quality:
    return Quality(
        rank_agreement_mean=agreement,
        score_max_abs_diff=difference,
        batch_max_abs_diff=0.0,
        load_s=0.1,
        inputs_per_s=10,
    )


@pytest.mark.parametrize("target", get_args(Target))
@pytest.mark.parametrize("task", get_args(Task))
def test_all_that_is_built_has_gates(task: Task, target: Target) -> None:
    """Each target for vectors and scores; sparse and multi-vector models have three."""
    if task in ("sparse", "multi-vector") and target not in ("cpu-int8", "cpu-fp32", "gpu-fp16"):
        return
    gates = gates_of(target, task)
    assert 0.9 < gates.cosine.minimum <= gates.cosine.mean <= 1
    assert gates.rank_agreement >= 0.95


def test_a_good_model_passes_every_gate() -> None:
    """Nothing falls short at the limit itself."""
    assert shortfalls(embedding(INT8.cosine.mean), "cpu-int8", INT8) == []
    assert shortfalls(cross_encoder(0.95, 0.5), "cpu-int8", INT8) == []


@pytest.mark.parametrize(
    ("target", "quality", "option"),
    [
        ("cpu-int8", embedding(0.98), "--min-cosine"),
        ("cpu-int8", embedding(float("nan")), "--min-cosine"),
        ("cpu-int8", embedding(minimum=0.97), "--min-worst-cosine"),
        ("cpu-fp32", embedding(minimum=0.9998), "--min-worst-cosine"),
        ("gpu-fp16", embedding(minimum=0.9989), "--min-worst-cosine"),
        ("cpu-fp32", cross_encoder(0.998), "mean rank agreement 0.9980 is below 0.999"),
        ("cpu-int8", cross_encoder(0.94), "mean rank agreement 0.9400 is below 0.95 (--min-rank"),
        ("cpu-int8", cross_encoder(float("nan")), "its ranking cannot be measured (--min-rank-agr"),
        ("cpu-fp32", cross_encoder(1, 1.1e-3), "a score differs by 1.10e-03"),
        ("gpu-fp16", cross_encoder(1, float("nan")), "a score differs by nan"),
    ],
)
def test_what_falls_short_is_named(target: Target, quality: Quality, option: str) -> None:
    """By its target's own figures. NaN compares false with everything and must not slip through."""
    (message,) = shortfalls(quality, target, gates_of(target))
    assert option in message


@pytest.mark.parametrize("difference", [1e-6, float("nan")])
def test_a_result_that_depends_on_its_batch_falls_short(difference: float) -> None:
    """1e-6 is already too much, and NaN too."""
    (message,) = shortfalls(embedding(difference=difference), "cpu-fp32", gates_of("cpu-fp32"))
    assert "batch" in message


def test_what_an_operator_asks_for_replaces_the_targets_figures() -> None:
    """A rank agreement of one's own says that scores may differ too."""
    asked = gates_of("cpu-fp32", mean=0.9, minimum=0.8, rank_agreement=-1)
    assert isinstance(asked, Gates)
    assert shortfalls(embedding(0.9, minimum=0.8), "cpu-fp32", asked) == []
    assert shortfalls(cross_encoder(0.1, 0.9), "cpu-fp32", asked) == []


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
