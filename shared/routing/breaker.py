"""A circuit breaker: stops calling a backend that keeps failing, and finds out when it is back.

Does not know what a failure is, nor backends: who calls says how each call ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shared.errors import Unavailable

FAILURES = 5
"""So many failures in a row open the circuit."""
OPEN_S = 10.0
"""While it is open, one call in so many seconds is let through, to try."""


class Breaker:
    """Closed: calls pass. Open, after `failures` in a row: none but one trial each `open_s` seconds.

    Any success closes it. A trial that never reports back blocks nothing: the next is `open_s` later.
    For one event loop; not thread-safe. clock: monotonic seconds.
    """

    def __init__(
        self,
        failures: int = FAILURES,
        open_s: float = OPEN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._open_s = open_s
        self._clock = clock
        self._failures = 0
        self._trial_at = 0.0

    @property
    def available(self) -> bool:
        """Whether `admit` would let a call through now."""
        return self._failures < self._limit or self._clock() >= self._trial_at

    def admit(self) -> None:
        """Call before each call. Raises Unavailable with retry_after_s while the circuit is open."""
        if self._failures < self._limit:
            return
        now = self._clock()
        if now < self._trial_at:
            raise Unavailable(
                "the backend failed repeatedly and is left alone for a moment",
                retry_after_s=self._trial_at - now,
            )
        self._trial_at = now + self._open_s

    def succeeded(self) -> None:
        """A call was answered."""
        self._failures = 0

    def failed(self) -> None:
        """A call was not answered, or with nonsense."""
        self._failures += 1
        self._trial_at = self._clock() + self._open_s
