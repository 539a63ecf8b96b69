"""How many replicas a backend should have: by tokens that wait and by how busy they are.

Ray applies the bounds and the delays. Pure; does not import Ray, which pickles this module by value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

WAITING_TOKENS = "waiting_tokens"
BUSY_SHARE = "busy_share"
"""What replicas report: tokens accepted and not yet given to an engine; the share of the time since
their last report in which they had work."""

FULL_SHARE = 0.7
"""A replica busier than this has no room for the requests of one that ends."""


class Context(Protocol):
    """The part of Ray's AutoscalingContext that is used here."""

    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None


class ByWaitingTokens:
    """Ray Serve's autoscaling policy of a backend.

    tokens_per_replica: tokens that may wait for each replica: what it does in the time that callers may
    wait. Ray itself goes from no replica to one as soon as a request waits.
    """

    def __init__(self, tokens_per_replica: int) -> None:
        self._tokens_per_replica = tokens_per_replica

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted, and no state."""
        told = context.aggregated_metrics or {}
        waiting = sum(told.get(WAITING_TOKENS, {}).values())
        busy = sum(told.get(BUSY_SHARE, {}).values())
        return wanted(waiting, busy, self._tokens_per_replica), {}


def wanted(waiting_tokens: float, busy: float, tokens_per_replica: int) -> int:
    """Replicas for so many tokens in all queues and so much work. busy: the sum of all busy shares."""
    return max(math.ceil(waiting_tokens / tokens_per_replica), math.ceil(round(busy / FULL_SHARE, 6)))
