"""A short soak; `make bench` has the long one."""

from __future__ import annotations

from tests.benchmarks import soak

EVICTED_MIB = 0.04
"""A third of what one of these models takes, so far less than if those evicted stayed."""


def test_a_thousand_mixed_requests_are_all_right() -> None:
    """Eight models, a cache of three: answers are checked, models come and go, memory stays."""
    figures = soak.run(1000)
    assert figures["requests"] >= 1000
    assert figures["wrong answers"] == 0
    assert figures["evictions"] > 0
    assert figures["models loaded at the end"] <= soak.CACHE_MODELS
    kinds = {name for name in figures if name.startswith("of them")}
    assert len(kinds) == 5
    grown_mib = figures["memory at the end, MiB"] - figures["memory at the start, MiB"]
    assert grown_mib < figures["evictions"] * EVICTED_MIB
