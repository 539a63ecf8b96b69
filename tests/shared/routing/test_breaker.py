"""shared.routing.breaker: when calls pass and when they do not, by a clock that only the test moves."""

from __future__ import annotations

import pytest

from shared.errors import Unavailable
from shared.routing.breaker import Breaker
from tests.fakes.clock import Clock


def opened() -> tuple[Breaker, Clock]:
    """A breaker of 3 failures and 10 seconds, just opened."""
    clock = Clock()
    breaker = Breaker(failures=3, open_s=10.0, clock=clock)
    for _ in range(3):
        assert breaker.available
        breaker.admit()
        breaker.failed()
    return breaker, clock


def is_refused(breaker: Breaker) -> bool:
    """Whether a call is refused; `available` must have said the same."""
    available = breaker.available
    try:
        breaker.admit()
    except Unavailable:
        assert not available
        return True
    assert available
    return False


def test_it_opens_after_so_many_failures_in_a_row_and_says_for_how_long() -> None:
    """The third failure opens it; the error tells the seconds left."""
    breaker, clock = opened()
    clock.now += 4
    assert not breaker.available
    with pytest.raises(Unavailable) as caught:
        breaker.admit()
    assert caught.value.retry_after_s == 6


def test_failures_that_are_not_in_a_row_do_not_open_it() -> None:
    """A success between them starts the count again."""
    breaker = Breaker(failures=2, open_s=10.0, clock=Clock())
    for _ in range(5):
        breaker.failed()
        breaker.succeeded()
    assert not is_refused(breaker)


def test_one_trial_passes_after_a_while() -> None:
    """Half-open: the first call goes, the others are refused until it has an answer."""
    breaker, clock = opened()
    clock.now += 10
    assert not is_refused(breaker)
    assert is_refused(breaker)


def test_a_trial_that_succeeds_closes_it() -> None:
    """From then on every call passes, and the count of failures starts at none."""
    breaker, clock = opened()
    clock.now += 10
    breaker.admit()
    breaker.succeeded()
    assert not is_refused(breaker)
    breaker.failed()
    breaker.failed()
    assert not is_refused(breaker)


def test_a_trial_that_fails_opens_it_for_the_whole_time_again() -> None:
    """Ten seconds from the failure, not from the start of the trial; one failure is enough."""
    breaker, clock = opened()
    clock.now += 10
    breaker.admit()
    clock.now += 7
    breaker.failed()
    clock.now += 9
    assert is_refused(breaker)
    clock.now += 1
    assert not is_refused(breaker)


def test_a_trial_that_never_ends_blocks_no_other() -> None:
    """Its caller left: the next trial goes ten seconds after it."""
    breaker, clock = opened()
    clock.now += 10
    breaker.admit()
    clock.now += 9
    assert is_refused(breaker)
    clock.now += 1
    assert not is_refused(breaker)
