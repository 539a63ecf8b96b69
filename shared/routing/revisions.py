"""What becomes of two revisions while one is staged: metrics of both, and a line when that one fails.

Does not decide which revision answers: shared.routing.staging does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from shared.cards import ModelCard
from shared.context import deadline
from shared.errors import BlitzError, DeadlineExceeded
from shared.observability.metrics import Telemetry
from shared.routing.staging import Way

_log = logging.getLogger(__name__)


class Attempt(msgspec.Struct):
    """tokens: of its answer."""

    tokens: int = 0


class Revisions:
    """Of one router. clock: monotonic seconds."""

    def __init__(self, metrics: Telemetry, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._failing: set[str] = set()

    def tell_quality(self, name: str, cards: Sequence[ModelCard]) -> None:
        """How close each of the two is to its original, by its manifest; nothing if there is but one."""
        told: dict[tuple[str, str], float] = {}
        for card in cards:
            if card.staged is not None and card.staged.card.revision != card.revision:
                for role, each in (("current", card), ("staged", card.staged.card)):
                    if each.closeness is not None:
                        told[card.device, role] = each.closeness
        self._metrics.revisions.compare(name, told)

    @contextmanager
    def watched(self, way: Way, name: str) -> Iterator[Attempt]:
        """Around an attempt: count it by its role, if there are two, and say when a staged one fails."""
        seen, began, outcome = Attempt(), self._clock(), "cancelled"
        try:
            yield seen
            outcome = "ok"
            self._failing.discard(way.model)
        except BlitzError as error:
            outcome = error.code
            self._tell_failing(way, error)
            raise
        except asyncio.CancelledError:
            if deadline.is_over():
                outcome = DeadlineExceeded.code
            raise
        finally:
            if way.role is not None:
                self._metrics.revisions.asked(name, way.role, outcome)
                if outcome == "ok":
                    took_s = self._clock() - began
                    self._metrics.revisions.answered(
                        name, way.role, duration_s=took_s, tokens=seen.tokens
                    )

    def _tell_failing(self, way: Way, error: BlitzError) -> None:
        """Once, until it has answered again: each request would be a line."""
        is_fault = error.status >= 500 or error.status == 404  # 404: it is not there
        if way.revision and is_fault and way.model not in self._failing:
            self._failing.add(way.model)
            _log.warning(
                "the staged revision %s did not answer on the %s backend: %s",
                *(way.model, way.device.upper(), error.message),
            )
