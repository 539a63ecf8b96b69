"""The pause after a failed load, in seconds that the test gives."""

from __future__ import annotations

import pytest

from shared.errors import ModelLoadFailed
from shared.inference.load_failures import LoadFailures


def test_each_failure_doubles_the_pause_up_to_a_minute() -> None:
    """1, 2, 4 ... 60 seconds; within the pause the time left is told, after it nothing is."""
    failures, now, pauses = LoadFailures(), 0.0, []
    for _ in range(8):
        error = failures.add("a", "why", now)
        assert error.retry_after_s is not None
        pauses.append(error.retry_after_s)
        with pytest.raises(ModelLoadFailed, match=r"^why$") as caught:
            failures.check("a", now + error.retry_after_s - 0.25)
        assert caught.value.retry_after_s == 0.25
        now += error.retry_after_s
        failures.check("a", now)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_what_is_loaded_begins_anew() -> None:
    """Its next failure, much later, has a short pause again; other models' do not matter."""
    failures = LoadFailures()
    failures.add("a", "why", 0.0)
    failures.add("b", "because", 0.0)
    failures.forget("a")
    failures.check("a", 0.0)
    assert dict(failures.reasons()) == {"b": "because"}
    assert failures.add("a", "why", 0.0).retry_after_s == 1


def test_old_failures_are_dropped() -> None:
    """A minute after their pause, when another one comes: names are callers' to make up."""
    failures = LoadFailures()
    failures.add("old", "why", 0.0)
    failures.add("newer", "why", 30.0)
    failures.add("new", "why", 61.0)
    assert [name for name, _ in failures.reasons()] == ["newer", "new"]
