"""Compares things that take turns, so that what else the machine does meanwhile hits all of them.

What is claimed is the median of the rounds' ratios, with its quartiles. Does not know what is measured,
and pins no thread to a core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some values, and their quartiles."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)} to {_short(self.high)})"

    def figures(self, name: str) -> dict[str, float]:
        """As lines of a report."""
        return {name: self.median, f"{name}: quartiles from": self.low, f"{name}: to": self.high}


def spread(values: Sequence[float]) -> Spread:
    """Of one value or more."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return Spread(float(low), float(median), float(high))


@dataclass(slots=True)
class Turns:
    """What each contender measured in each round, in order."""

    measured: dict[str, list[float]] = field(default_factory=dict)

    def of(self, name: str) -> Spread:
        """A contender's own values: for orientation, because they depend on the machine's mood."""
        return spread(self.measured[name])

    def ratio(self, name: str, to: str) -> Spread:
        """How many times the other's value its own was, round by round."""
        return spread([a / b for a, b in self._pairs(name, to)])

    def difference(self, name: str, to: str) -> Spread:
        """How much more than the other's value its own was, round by round."""
        return spread([a - b for a, b in self._pairs(name, to)])

    def _pairs(self, name: str, to: str) -> list[tuple[float, float]]:
        return list(zip(self.measured[name], self.measured[to], strict=True))


def take_turns(contenders: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> Turns:
    """Ask each contender for one value a round; every second round in the opposite order.

    A contender measures itself, over work that is the same each time, and has warmed up before.
    """
    names = list(contenders)
    turns = Turns({name: [] for name in names})
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            turns.measured[name].append(contenders[name]())
    return turns


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
