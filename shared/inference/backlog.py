"""How much may wait: so many tokens, and no more than are run in so many seconds. Pure.

Does not know what waits, nor clocks: how long a batch took is told.
"""

from __future__ import annotations

import msgspec

from shared.errors import Overloaded


class TokenReservation(msgspec.Struct, eq=False):
    """A request that is let in and not yet queued. tokens: an estimate; 0 once it is queued."""

    tokens: int


class Backlog:
    """Not thread-safe.

    threads: how many run batches. max_tokens: so many may wait; max_s: and the seconds that they are
    expected to take, which are unknown before the first batch.
    """

    def __init__(self, *, threads: int, max_tokens: int, max_s: float) -> None:
        self._threads = threads
        self._max_tokens = max_tokens
        self._max_s = max_s
        self._reserved_tokens = 0
        self._tokens_per_s = 0.0

    def check(self, queued_tokens: int) -> None:
        """Raise Overloaded, with retry_after_s, if more waits than may."""
        excess = queued_tokens + self._reserved_tokens - self._room_tokens()
        if excess > 0:
            raise Overloaded(
                "too many requests are waiting: retry later", retry_after_s=self._drain_s(excess)
            )

    def reserve(self, tokens: int) -> TokenReservation:
        """Count these tokens as waiting until `release`."""
        self._reserved_tokens += tokens
        return TokenReservation(tokens)

    def release(self, reservation: TokenReservation) -> None:
        """A second time it has no effect."""
        self._reserved_tokens -= reservation.tokens
        reservation.tokens = 0

    def ran(self, tokens: int, seconds: float) -> None:
        """Learn from a batch how fast a thread is."""
        rate = tokens / max(seconds, 1e-6)
        self._tokens_per_s += (rate - self._tokens_per_s) * (0.1 if self._tokens_per_s else 1.0)

    def _room_tokens(self) -> float:
        rate = self._tokens_per_s * self._threads
        return min(self._max_tokens, rate * self._max_s or self._max_tokens)

    def _drain_s(self, tokens: float) -> float:
        """Seconds until `tokens` are run at the recent rate: 1 to 60."""
        rate = self._tokens_per_s * self._threads
        return min(60.0, max(1.0, tokens / rate)) if rate else 1.0
