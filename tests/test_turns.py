"""How benchmarks compare: by hand-counted rounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.benchmarks.turns import Spread, spread, take_turns


def counting(name: str, values: list[float], asked: list[str]) -> Callable[[], float]:
    """Gives `values` one after another, and notes in `asked` that it was its turn."""
    left = iter(values)

    def measure() -> float:
        asked.append(name)
        return next(left)

    return measure


def test_contenders_take_turns_and_are_compared_round_by_round() -> None:
    """In the second round everything is ten times as slow, which no ratio shows."""
    asked: list[str] = []
    ours, theirs = [3.0, 30.0, 4.0], [2.0, 20.0, 2.0]
    contenders = {"ours": counting("ours", ours, asked), "theirs": counting("theirs", theirs, asked)}
    turns = take_turns(contenders, rounds=3)
    assert asked == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert turns.ratio("ours", "theirs") == Spread(1.5, 1.5, 1.75)
    assert turns.difference("ours", "theirs") == Spread(1.5, 2.0, 6.0)
    assert turns.of("theirs").median == 2.0
    assert str(turns.ratio("ours", "theirs")) == "1.50 (1.50 to 1.75)"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], (7.0, 7.0, 7.0)),
        ([1.0, 2.0, 3.0, 4.0, 5.0], (2.0, 3.0, 4.0)),
        ([4.0, 2.0], (2.5, 3.0, 3.5)),
    ],
)
def test_a_spread_is_the_median_and_the_quartiles(
    values: list[float], expected: tuple[float, float, float]
) -> None:
    """Between two values it is interpolated."""
    assert spread(values) == Spread(*expected)
