"""Forecasts GPU demand from the hours of past weeks. Pure: the time is an argument.

Does not know requests, blobs, timers or how a GPU is woken. Times are Unix seconds, hours are UTC.

A week has 168 hourly slots. A slot's level is an exponentially weighted count of its requests: each week
weighs WEEK_DECAY of the next one. Level / observed seconds, weighted alike, is the rate. So an hour that
falls silent fades by itself, and the counts of several processes add up. A day that deviates from its
forecast (a holiday, a client that left) is noticed within hours, because the forecast is scaled down by
recent requests / recently expected requests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

SLOT_S = 3600
SLOTS = 168
WEEK_S = SLOTS * SLOT_S
TICK_S = 300
"""Interval between calls of `advance` and `should_wake`."""

WEEK_DECAY = 0.5
"""Weight of a week's counts relative to the next week's."""

DAILY_PRIOR = 0.25
"""Weight of the same hour on all seven days, as a share of one observed hour."""

RECENT_S = 7200.0
"""Time constant with which recent counts and expectations decay."""

PRIOR_REQUESTS = 5.0
"""Missing requests that halve the forecast when none came."""

_DAY = 24
_WEEKS = 12  # older weeks weigh less than a thousandth
_STEP_S = 60.0


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The persisted state, about 2 kB as JSON.

    began_s: start of counting. week: the week whose counts weigh 1, in weeks since 1970. levels: by hour
    of the week, which begins on Thursday as 1970 did. woken_s: when the GPU was last woken ahead; 0:
    never. came, expected: recent requests, actual and forecast, as of lately_s.
    """

    began_s: float
    week: int
    levels: list[float]
    woken_s: float = 0.0
    came: float = 0.0
    expected: float = 0.0
    lately_s: float = 0.0

    def __post_init__(self) -> None:
        if len(self.levels) != SLOTS:
            raise ValueError(f"a state has {SLOTS} levels")


def begin(now_s: float) -> State:
    """The initial state."""
    return State(now_s, int(now_s // WEEK_S), [0.0] * SLOTS, lately_s=now_s)


def slot_at(now_s: float) -> int:
    """Hours since 1970."""
    return int(now_s // SLOT_S)


def add_counts(state: State, counts: Mapping[int, int], now_s: float) -> State:
    """Add requests. counts: by `slot_at` of their time; late counts go to their own week."""
    state = _decay(state, now_s)
    levels = list(state.levels)
    for slot, count in counts.items():
        week, hour = divmod(slot, SLOTS)
        levels[hour] += count * WEEK_DECAY ** (state.week - week)
    return msgspec.structs.replace(state, levels=levels, came=state.came + sum(counts.values()))


def advance(state: State, now_s: float, *, woken: bool) -> State:
    """Record the requests expected until the next tick. woken: the GPU is woken now."""
    state = _decay(state, now_s)
    # Without interpolation: traffic that starts at nine sharp is not missing at half past eight.
    expected = state.expected + TICK_S * _hour_rate(state, now_s, slot_at(now_s))
    woken_s = now_s if woken else state.woken_s
    return msgspec.structs.replace(state, expected=expected, woken_s=woken_s)


def forecast(state: State, now_s: float, horizon_s: float) -> float:
    """Requests expected within `horizon_s` from now."""
    state = _decay(state, now_s)
    # Never scaled up: a busy day keeps the GPU up by itself.
    trust = min(1.0, (state.came + PRIOR_REQUESTS) / (state.expected + PRIOR_REQUESTS))
    return trust * _integrate(state, now_s, horizon_s)


def should_wake(
    state: State, now_s: float, *, wake_s: float, idle_s: float, gpu_s_per_request: float
) -> bool:
    """Whether waking the GPU now is worth its cost; never twice within a cool-down.

    wake_s, idle_s: how long waking takes, and how long it stays up after a request. gpu_s_per_request:
    GPU seconds that sparing one request the cold start may cost.

    A GPU woken ahead costs until the first request comes, at most wake_s + idle_s. At a steady rate r
    that is (1 - exp(-r (wake_s + idle_s))) / r on average. With probability 1 - exp(-r (wake_s +
    idle_s)) it spares that request and the r wake_s that would have come while it woke. So each spared
    request costs 1 / (r (1 + r wake_s)), whether the GPU is down or about to scale down.
    """
    if now_s - state.woken_s < idle_s - TICK_S / 2:  # half a tick, because timers run slightly late
        return False
    rate = forecast(state, now_s, wake_s + idle_s) / (wake_s + idle_s)
    return rate * (1 + rate * wake_s) * gpu_s_per_request >= 1


def _decay(state: State, now_s: float) -> State:
    """The state decayed to now. Clock skew and clocks that go back have no effect."""
    week = max(int(now_s // WEEK_S), state.week)
    faded = WEEK_DECAY ** (week - state.week)
    lately_s = max(now_s, state.lately_s)
    kept = math.exp((state.lately_s - lately_s) / RECENT_S)
    return msgspec.structs.replace(
        state,
        week=week,
        levels=[level * faded for level in state.levels] if faded < 1 else state.levels,
        came=state.came * kept,
        expected=state.expected * kept,
        lately_s=lately_s,
    )


def _integrate(state: State, now_s: float, horizon_s: float) -> float:
    """Requests within the horizon, from hourly rates interpolated between the hours' middles."""
    steps = max(1, round(horizon_s / _STEP_S))
    step_s = horizon_s / steps
    rates: dict[int, float] = {}
    total = 0.0
    for step in range(steps):
        at, share = divmod((now_s + (step + 0.5) * step_s) / SLOT_S - 0.5, 1)
        for slot, weight in ((int(at), 1 - share), (int(at) + 1, share)):
            if slot not in rates:
                rates[slot] = _hour_rate(state, now_s, slot)
            total += weight * rates[slot]
    return step_s * total


def _hour_rate(state: State, now_s: float, slot: int) -> float:
    """Requests per second in an hour."""
    days = [(slot + day * _DAY) % SLOTS for day in range(7)]
    watched = [_observed_s(state, now_s, hour) for hour in days]
    if not any(watched):
        return 0.0
    every_day = sum(state.levels[hour] for hour in days) / sum(watched)
    prior_s = DAILY_PRIOR * SLOT_S
    return (state.levels[days[0]] + prior_s * every_day) / (watched[0] + prior_s)


def _observed_s(state: State, now_s: float, hour: int) -> float:
    """Observed seconds of that hour of the week, weighted as its counts are."""
    total = 0.0
    for age in range(_WEEKS):
        start_s = (state.week - age) * WEEK_S + hour * SLOT_S
        seen_s = min(now_s, start_s + SLOT_S) - max(state.began_s, start_s)
        total += max(seen_s, 0.0) * WEEK_DECAY**age
    return total
