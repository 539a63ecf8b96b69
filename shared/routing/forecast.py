"""When the GPU will be wanted, learned from the hours of past weeks: pure, `now` included.

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
"""`advance` and `should_wake` are asked so often."""

WEEK_DECAY = 0.5
"""Weight of a week in the next one."""

DAILY_PRIOR = 0.25
"""The same hour of all seven days weighs as much as such a share of one week's hour."""

RECENT_S = 7200.0
"""What came and was expected is forgotten with this time constant."""

PRIOR_REQUESTS = 5.0
"""Requests that have to be missing before the forecast is halved, when nothing came."""

_DAY = 24
_WEEKS = 12  # older ones weigh less than a thousandth
_STEP_S = 60.0


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is remembered: about 2 kB as JSON.

    began_s: since when requests are counted. week: weeks since 1970, in which a count weighs 1.
    levels: of each hour of the week, the first one Thursday's, as 1970 began. woken_s: when the GPU was
    last woken ahead; 0: never. came, expected: requests lately, as of lately_s.
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
    """Nothing counted yet."""
    return State(now_s, int(now_s // WEEK_S), [0.0] * SLOTS, lately_s=now_s)


def slot_at(now_s: float) -> int:
    """Number of the hour since 1970."""
    return int(now_s // SLOT_S)


def add_counts(state: State, counts: Mapping[int, int], now_s: float) -> State:
    """With requests that came. counts: by `slot_at` their time; late ones count for their own week."""
    state = _decay(state, now_s)
    levels = list(state.levels)
    for slot, count in counts.items():
        week, hour = divmod(slot, SLOTS)
        levels[hour] += count * WEEK_DECAY ** (state.week - week)
    return msgspec.structs.replace(state, levels=levels, came=state.came + sum(counts.values()))


def advance(state: State, now_s: float, *, woken: bool) -> State:
    """One tick later: what is expected until the next one is noted. woken: the GPU is woken now."""
    state = _decay(state, now_s)
    # By the hour, without the straight lines: who begins at nine sharp is not late at half past eight.
    expected = state.expected + TICK_S * _hour_rate(state, now_s, slot_at(now_s))
    woken_s = now_s if woken else state.woken_s
    return msgspec.structs.replace(state, expected=expected, woken_s=woken_s)


def forecast(state: State, now_s: float, horizon_s: float) -> float:
    """Requests that are expected within `horizon_s` from now."""
    state = _decay(state, now_s)
    # Never more than the hours foretell: a busy day keeps the GPU up by itself.
    trust = min(1.0, (state.came + PRIOR_REQUESTS) / (state.expected + PRIOR_REQUESTS))
    return trust * _integrate(state, now_s, horizon_s)


def should_wake(
    state: State, now_s: float, *, wake_s: float, idle_s: float, gpu_s_per_request: float
) -> bool:
    """Whether waking the GPU now is worth it; never twice within a cool-down.

    wake_s, idle_s: how long it takes to wake, and stays up after a request. gpu_s_per_request: GPU
    seconds that may be paid to spare one request the cold start.

    Woken ahead, the GPU is paid for until the first request comes, and no longer than wake_s + idle_s.
    At a steady rate r that is (1 - exp(-r (wake_s + idle_s))) / r on average. Spared are, with a chance
    of 1 - exp(-r (wake_s + idle_s)), that request and the r wake_s that would have come while it woke.
    So one costs 1 / (r (1 + r wake_s)): the same whether the GPU is down or about to go.
    """
    if now_s - state.woken_s < idle_s - TICK_S / 2:  # half, because timers are late by a little
        return False
    rate = forecast(state, now_s, wake_s + idle_s) / (wake_s + idle_s)
    return rate * (1 + rate * wake_s) * gpu_s_per_request >= 1


def _decay(state: State, now_s: float) -> State:
    """As of now. Clocks that differ a little, or go back, change nothing."""
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
    """Requests from now on by the hours alone: straight lines between the middles of the hours."""
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
    """Requests a second."""
    days = [(slot + day * _DAY) % SLOTS for day in range(7)]
    watched = [_observed_s(state, now_s, hour) for hour in days]
    if not any(watched):
        return 0.0
    every_day = sum(state.levels[hour] for hour in days) / sum(watched)
    prior_s = DAILY_PRIOR * SLOT_S
    return (state.levels[days[0]] + prior_s * every_day) / (watched[0] + prior_s)


def _observed_s(state: State, now_s: float, hour: int) -> float:
    """Seconds of that hour of the week since counting began, each week's weighed as its counts are."""
    total = 0.0
    for age in range(_WEEKS):
        start_s = (state.week - age) * WEEK_S + hour * SLOT_S
        seen_s = min(now_s, start_s + SLOT_S) - max(state.began_s, start_s)
        total += max(seen_s, 0.0) * WEEK_DECAY**age
    return total
