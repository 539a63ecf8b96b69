"""How much may wait, in tokens and in seconds that the test gives."""

from __future__ import annotations

from shared.errors import Overloaded
from shared.inference.backlog import Backlog


def refusal(backlog: Backlog, queued_tokens: int) -> float | None:
    """After how many seconds to retry; None: another request is let in."""
    try:
        backlog.check(queued_tokens)
    except Overloaded as error:
        return error.retry_after_s
    return None


def test_tokens_are_limited_whatever_the_rate() -> None:
    """What waits may be max_tokens; what is reserved counts until it is queued, once."""
    backlog = Backlog(threads=1, max_tokens=10, max_s=1e9)
    assert refusal(backlog, 10) is None
    assert refusal(backlog, 11) == 1
    reservation = backlog.reserve(5)
    assert refusal(backlog, 5) is None
    assert refusal(backlog, 6) == 1
    backlog.release(reservation)
    backlog.release(reservation)
    assert refusal(backlog, 10) is None
    assert refusal(backlog, 11) == 1


def test_seconds_are_limited_once_the_rate_is_known() -> None:
    """Two threads of 100 tokens/s run 600 tokens in the 3 s that may be waited."""
    backlog = Backlog(threads=2, max_tokens=10_000, max_s=3)
    assert refusal(backlog, 10_000) is None
    backlog.ran(50, 0.5)
    assert refusal(backlog, 600) is None
    assert refusal(backlog, 601) == 1
    assert refusal(backlog, 1000) == 2  # the 400 too many are run in 2 s
    assert refusal(backlog, 100_000) == 60


def test_the_rate_follows_slowly() -> None:
    """Each further batch counts a tenth: 100, then 100 + (200 - 100) / 10 tokens/s."""
    backlog = Backlog(threads=1, max_tokens=10_000, max_s=1)
    backlog.ran(100, 1.0)
    backlog.ran(200, 1.0)
    assert refusal(backlog, 110) is None
    assert refusal(backlog, 111) == 1


def test_a_batch_that_took_no_time_is_no_division_by_zero() -> None:
    backlog = Backlog(threads=1, max_tokens=10, max_s=1)
    backlog.ran(1, 0.0)
    assert refusal(backlog, 10) is None
