"""How long tests wait for what must happen: it bounds a hang, and nothing passes by it."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 180.0
"""Nothing that works takes so long, on one busy core either: what does is taken to hang."""


def wait_until(condition: Callable[[], object]) -> None:
    """Poll, for what other processes do. Fails after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to that in {PATIENCE_S} s"
        time.sleep(0.02)
