"""Which models failed to load lately, why, and when each may be tried again. Pure: the time is given.

Does not know who loads models, nor who waits for them.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from shared.errors import ModelLoadFailed

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0


def longer(delay_s: float) -> float:
    """The pause after the next failure: twice as long, up to LONGEST_RETRY_S."""
    return min(delay_s * 2, LONGEST_RETRY_S)


class _Failed(msgspec.Struct, frozen=True):
    reason: str
    delay_s: float
    retry_at: float


class LoadFailures:
    """By name. Each further failure of a model doubles its pause. Times are seconds, monotonic."""

    def __init__(self) -> None:
        self._failed: dict[str, _Failed] = {}

    def check(self, name: str, now: float) -> None:
        """Raise ModelLoadFailed, with the time left, during the pause after a failure."""
        failed = self._failed.get(name)
        if failed and (left_s := failed.retry_at - now) > 0:
            raise ModelLoadFailed(failed.reason, retry_after_s=left_s)

    def add(self, name: str, reason: str, now: float) -> ModelLoadFailed:
        """Note a failure. Returns the error for those who waited for the load."""
        before = self._failed.get(name)
        delay_s = longer(before.delay_s) if before else FIRST_RETRY_S
        # Old ones are dropped here, or a dead store would let callers fill memory with made-up names.
        self._failed = {
            other: failed
            for other, failed in self._failed.items()
            if now - failed.retry_at < LONGEST_RETRY_S
        }
        self._failed[name] = _Failed(reason, delay_s, now + delay_s)
        return ModelLoadFailed(reason, retry_after_s=delay_s)

    def forget(self, name: str) -> None:
        """Call it when the model has loaded."""
        self._failed.pop(name, None)

    def reasons(self) -> Iterator[tuple[str, str]]:
        """Name and reason of each failure."""
        return ((name, failed.reason) for name, failed in self._failed.items())
