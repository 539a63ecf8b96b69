"""A circuit breaker: stops calls to a backend that keeps failing, and probes whether it is back.

Does not know backends, or what counts as a failure: the caller reports each outcome.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shared.errors import Unavailable

FAILURES = 5
"""Consecutive failures that open the circuit."""
OPEN_S = 10.0
"""Interval between trial calls while the circuit is open."""


class Breaker:
    """Closed: calls pass. Open, after `failures` in a row: one trial call every `open_s` seconds passes.

    Any success closes it. A trial that never reports back blocks nothing: the next follows `open_s`
    later. For one event loop; not thread-safe. clock: monotonic seconds.
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
        """Check in before each call. Raises Unavailable with retry_after_s while the circuit is open."""
        if self._failures < self._limit:
            return
        now = self._clock()
        if now < self._trial_at:
            raise Unavailable(
                "the backend failed repeatedly: calls to it are paused",
                retry_after_s=self._trial_at - now,
            )
        self._trial_at = now + self._open_s

    def succeeded(self) -> None:
        """Report a call that got a response."""
        self._failures = 0

    def failed(self) -> None:
        """Report a call that got no response, or an invalid one."""
        self._failures += 1
        self._trial_at = self._clock() + self._open_s
