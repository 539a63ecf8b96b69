"""What counts as close to the original, on vectors whose cosines are known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from model_build.fidelity import (
    TARGETS,
    Fidelity,
    FidelityTarget,
    compare_vectors,
    fidelity_shortfalls,
    relaxed,
)
from shared.contracts import FloatMatrix

TARGET = FidelityTarget(mean=0.99, minimum=0.9, low=0.95, low_share=0.25, centred=0.5)
GOOD = Fidelity(mean=0.99, p01=0.9, minimum=0.9, low_share=0.25, centred=0.5, worst=0)


def unit(*angles: float) -> FloatMatrix:
    """Vectors of two dimensions at these angles, in degrees."""
    turned = np.radians(angles)
    return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)


def test_cosines_are_those_of_the_angles_between() -> None:
    """Two texts as they were, one turned by 60 degrees: 1, 1 and 0.5."""
    found = compare_vectors(unit(0, 90, 240), unit(0, 90, 180), TARGET)
    assert [found.mean, found.minimum, found.low_share] == pytest.approx([2.5 / 3, 0.5, 1 / 3])
    assert found.worst == 2
    # The original's mean is (0, 1/3): its squares then sum up to 24/9, the turned ones' to 14/9 +
    # 1.68846, and the products to 14/9 + 0.89979.
    assert found.centred == pytest.approx(2.45534 / (2.66667 * 3.24402) ** 0.5, abs=1e-4)


def test_what_all_texts_have_in_common_hides_nothing() -> None:
    """Texts a degree apart, and what tells them apart turned round: 0.999 before, below 0 after."""
    found = compare_vectors(unit(44, 45, 46), unit(46, 45, 44), TARGET)
    assert found.minimum > 0.999
    assert found.centred == pytest.approx(-1, abs=1e-3)
    (message,) = fidelity_shortfalls(found, TARGET)
    assert "all texts lie close together" in message


def test_texts_that_all_have_one_vector_cannot_be_told_apart_by_the_original() -> None:
    """Nothing to lose: not NaN, which would be refused."""
    assert compare_vectors(unit(45, 45), unit(45, 45), TARGET).centred == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"mean": 0.989}, ["mean cosine 0.989000 is below 0.99 (--min-cosine)"]),
        ({"minimum": 0.899}, ["the worst text's cosine 0.899000 is below 0.9 (--min-worst-cosine)"]),
        ({"low_share": 0.26}, ["26.0% of the texts have a cosine below 0.95; at most 25.0% may"]),
        ({"centred": 0.49}, ["all texts lie close together, and apart from"]),
        ({"mean": float("nan")}, ["mean cosine nan is below"]),
        ({"minimum": float("nan")}, ["the worst text's cosine nan is below"]),
        ({"low_share": float("nan")}, ["nan% of the texts"]),
        ({"centred": float("nan")}, ["all texts lie close together"]),
    ],
)
def test_each_figure_counts_for_itself(change: dict[str, float], said: list[str]) -> None:
    """The limit itself passes; a good mean hides no bad text; NaN passes nowhere."""
    figures = {name: getattr(GOOD, name) for name in GOOD.__slots__} | change
    messages = fidelity_shortfalls(Fidelity(**figures), TARGET)
    assert len(messages) == len(said)
    assert all(start in message for start, message in zip(said, messages, strict=True))


def test_vectors_that_are_not_finite_fall_short() -> None:
    """Of one text among many."""
    vectors = unit(0, 90)
    vectors[1] = np.nan
    assert fidelity_shortfalls(compare_vectors(vectors, unit(0, 90), TARGET), TARGET)


def test_an_operator_may_ask_for_less_or_for_more() -> None:
    """A minimum of one's own replaces the share below, which would forbid what it allows."""
    poor = Fidelity(mean=0.95, p01=0.8, minimum=0.8, low_share=0.0, centred=0.9, worst=0)
    assert fidelity_shortfalls(poor, TARGET)
    assert fidelity_shortfalls(poor, relaxed(TARGET, 0.95, 0.8)) == []
    assert fidelity_shortfalls(GOOD, relaxed(TARGET, 0.9999))


def test_fp32_is_closer_than_fp16_and_fp16_than_int8() -> None:
    """Each target has figures of its own; those of FP32 and FP16 hold for every text."""
    int8, fp16, fp32 = (TARGETS[name] for name in ("cpu-int8", "gpu-fp16", "cpu-fp32"))
    assert int8.mean < fp16.mean < fp32.mean
    assert (fp16.minimum, fp32.minimum) == (0.999, 0.9999)
