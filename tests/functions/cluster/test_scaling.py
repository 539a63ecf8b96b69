"""How many replicas are wanted, from what they tell."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from functions.cluster.scaling import BUSY_SHARE, WAITING_TOKENS, ByWaitingTokens


@pytest.mark.parametrize(
    ("waiting", "busy", "replicas"),
    [
        ([], [], 0),
        ([0.0], [0.0], 0),
        ([1.0], [0.0], 1),
        ([1000.0], [0.7], 1),
        ([1000.0], [0.71], 2),
        ([1001.0], [0.5], 2),
        ([3000.0, 4500.0], [1.0, 1.0], 8),
        ([0.0, 0.0, 0.0], [0.6, 0.6, 0.6], 3),
        ([0.0, 0.0, 0.0], [0.2, 0.2, 0.2], 1),
    ],
)
def test_tokens_that_wait_and_busy_time_decide(
    waiting: list[float], busy: list[float], replicas: int
) -> None:
    """A replica for each 1,000 tokens; none less than what is now busy fills to seven tenths."""
    told = {WAITING_TOKENS: dict(enumerate(waiting)), BUSY_SHARE: dict(enumerate(busy))}
    context: Any = SimpleNamespace(aggregated_metrics=told)
    assert ByWaitingTokens(tokens_per_replica=1000)(context) == (replicas, {})


def test_nothing_told_yet_is_no_demand() -> None:
    """Bounds are Ray's: a backend that must have a replica keeps it."""
    context: Any = SimpleNamespace(aggregated_metrics=None)
    assert ByWaitingTokens(1000)(context) == (0, {})
