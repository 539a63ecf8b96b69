"""What the forecast learns, and when waking the GPU is worth it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import pairwise

import msgspec
import pytest

from shared.routing.forecast import (
    SLOT_S,
    SLOTS,
    TICK_S,
    WEEK_S,
    State,
    add_counts,
    advance,
    begin,
    forecast,
    should_wake,
    slot_at,
)
from tests.benchmarks.routing import SEED
from tests.benchmarks.traffic import Day, arrivals_of, office_counts, recorded_days, synthetic_days
from tests.benchmarks.warmup import POLICIES, WeekSimulation, learn

MONDAY_S = 4 * 86_400.0 + 2_000 * WEEK_S
DAY_S = 86_400.0


def _at_work(hour: int) -> int:
    """60 requests an hour, 9 to 17, Monday to Friday. hour: since that Monday."""
    return 60 if hour // 24 % 7 < 5 and 9 <= hour % 24 < 17 else 0


def _learned(hours: Iterable[int], comes: Callable[[int], int] = _at_work) -> State:
    """Counted at the end of each hour."""
    state = begin(MONDAY_S)
    for hour in hours:
        end_s = MONDAY_S + (hour + 1) * SLOT_S
        state = add_counts(state, {slot_at(end_s - 1): comes(hour)}, end_s)
    return state


def _wakes(state: State, now_s: float, **changed: float) -> bool:
    arguments = {"wake_s": 25.0, "idle_s": 300.0, "gpu_s_per_request": 180.0} | changed
    return should_wake(state, now_s, **arguments)


FOUR_WEEKS = _learned(range(4 * SLOTS))
FIFTH_S = MONDAY_S + 4 * WEEK_S


def _known(hours: int) -> tuple[State, float]:
    """What is known so many hours into the fifth week, and when that is."""
    return _learned(range(4 * SLOTS + hours)), FIFTH_S + hours * SLOT_S


@pytest.mark.parametrize(
    ("hours", "requests"), [(12, 60), (4 * 24 + 12, 60), (3, 0), (20, 0), (5 * 24 + 12, 0), (6 * 24, 0)]
)
def test_a_steady_week_is_foretold(hours: int, requests: int) -> None:
    """On Monday's and Friday's noon what always comes; at night nobody, on Sunday hardly anybody."""
    assert forecast(*_known(hours), SLOT_S) == pytest.approx(requests, abs=10)


def test_a_longer_horizon_holds_more() -> None:
    """All of a working day's 480, seen from its midnight."""
    assert forecast(FOUR_WEEKS, FIFTH_S, DAY_S) == pytest.approx(480, rel=0.1)


def test_nothing_is_foretold_before_anything_came() -> None:
    """A new deployment wakes nothing."""
    state = begin(MONDAY_S)
    assert forecast(state, MONDAY_S, DAY_S) == 0
    assert forecast(state, MONDAY_S + 30 * DAY_S, DAY_S) == 0
    assert not _wakes(state, MONDAY_S)


def test_one_day_says_a_little_of_the_next() -> None:
    """Tuesday's noon is not known yet, so it is taken after Monday's, and its night after Monday's."""
    state, tuesday_s = _learned(range(24)), MONDAY_S + DAY_S
    day, night = forecast(state, tuesday_s, DAY_S), forecast(state, tuesday_s, 6 * SLOT_S)
    assert day == pytest.approx(480, rel=0.1)
    assert night == 0


def test_a_pattern_that_stopped_fades_and_never_comes_back() -> None:
    """Hours of which nobody writes are empty hours: each silent week halves the forecast."""
    mondays = [FIFTH_S + week * WEEK_S + 11 * SLOT_S for week in range(4)]
    foretold = [forecast(FOUR_WEEKS, monday_s, 3 * SLOT_S) for monday_s in mondays]
    assert all(after < 0.6 * before for before, after in pairwise(foretold))
    assert _wakes(*_known(11))
    assert not _wakes(FOUR_WEEKS, mondays[3])


def test_a_day_on_which_nobody_comes_is_noticed_within_hours() -> None:
    """A holiday: woken in the morning, and not any more at noon; the next day is as always."""
    state, woken = FOUR_WEEKS, []
    for tick in range(int(DAY_S / TICK_S)):
        now_s = FIFTH_S + tick * TICK_S
        woken.append(_wakes(state, now_s))
        state = advance(state, now_s, woken=woken[-1])
    hours = {tick * TICK_S // SLOT_S for tick, is_woken in enumerate(woken) if is_woken}
    assert hours
    assert max(hours) <= 10
    assert forecast(state, FIFTH_S + DAY_S + 8 * SLOT_S, 9 * SLOT_S) > 350


def test_it_is_awake_before_the_working_day_begins_and_all_day() -> None:
    """Rates rise between the middles of the hours: the last ticks before nine wake it."""
    state, woken = FOUR_WEEKS, {}
    for tick in range(int(16 * SLOT_S / TICK_S)):
        now_s = FIFTH_S + tick * TICK_S
        came = _at_work(int((now_s - 1 - FIFTH_S) // SLOT_S)) // 12
        state = add_counts(state, {slot_at(now_s - 1): came}, now_s)
        woken[tick / 12] = _wakes(state, now_s)
        state = advance(state, now_s, woken=woken[tick / 12])
    assert all(woken[hour] for hour in woken if 9 - 1 / 6 <= hour <= 16)
    assert not any(woken[hour] for hour in woken if hour < 8)


@pytest.mark.parametrize("hour", [0, 3, 6, 20, 23])
def test_a_night_in_which_nobody_comes_wakes_nothing(hour: int) -> None:
    """At whatever price below a day of GPU."""
    assert not _wakes(FOUR_WEEKS, FIFTH_S + hour * SLOT_S, gpu_s_per_request=80_000)


def test_at_most_one_wake_a_cool_down() -> None:
    """The tick after a wake waits, unless the GPU is down again by the one after it."""
    state, noon_s = _known(12)
    woken = advance(state, noon_s, woken=True)
    assert not _wakes(woken, noon_s + 60)
    assert _wakes(woken, noon_s + TICK_S - 2)
    assert not _wakes(woken, noon_s + TICK_S, idle_s=900)
    assert _wakes(woken, noon_s + 3 * TICK_S - 2, idle_s=900)


@pytest.mark.parametrize("wake_s", [0.0, 25.0])
def test_the_price_is_what_a_spared_request_costs(wake_s: float) -> None:
    """60 an hour: the GPU waits a minute for the first, and 0.4 more would have come while it woke."""
    state = _learned(range(4 * SLOTS), lambda hour: 60)
    rate = forecast(state, FIFTH_S, SLOT_S) / SLOT_S
    assert rate == pytest.approx(1 / 60)
    costs_s = 60 / (1 + wake_s / 60)
    assert _wakes(state, FIFTH_S, wake_s=wake_s, gpu_s_per_request=1.01 * costs_s)
    assert not _wakes(state, FIFTH_S, wake_s=wake_s, gpu_s_per_request=0.99 * costs_s)


def test_the_price_holds_where_arrivals_are_random() -> None:
    """Against Poisson arrivals counted one by one: paid seconds for each request spared."""
    rng, rate, wake_s, idle_s = random.Random(1), 1 / 200, 25.0, 300.0
    paid = spared = 0.0
    for _ in range(20_000):
        first_s = rng.expovariate(rate)
        paid += min(first_s, wake_s + idle_s)
        if first_s < wake_s + idle_s:
            spared += 1
            after_s = rng.expovariate(rate)
            while after_s < wake_s:
                spared += 1
                after_s += rng.expovariate(rate)
    assert paid / spared == pytest.approx(1 / (rate * (1 + rate * wake_s)), rel=0.03)


@pytest.mark.parametrize(
    "days",
    [synthetic_days(office_counts, 14, SEED), recorded_days()[-14:]],
    ids=["office hours", "recorded"],
)
def test_in_a_simulated_week_it_spares_cold_starts_at_less_than_their_price(days: list[Day]) -> None:
    """After one week like it, with the routing and the serving of the benchmark."""
    policy, start_s, end_s = POLICIES["fixed, 10 texts"], float(WEEK_S), 2.0 * WEEK_S
    arrivals = arrivals_of(days, 1_000, SEED)
    past, week = ([each for day in arrivals[first : first + 7] for each in day] for first in (0, 7))
    without = WeekSimulation(policy, None).run_days(week, start_s, end_s)
    state = learn(policy, past, start_s)
    ahead = WeekSimulation(policy, state, gpu_s_per_request=600.0).run_days(week, start_s, end_s)
    spared = without.cold - ahead.cold
    paid_s = ahead.outcome.paid_s["gpu"] - without.outcome.paid_s["gpu"]
    assert ahead.wanted == without.wanted
    assert spared > 0.3 * without.cold
    assert paid_s < 600 * spared


def test_counts_add_up_in_any_order() -> None:
    """What several instances write, one late, is what one would have written."""
    now_s = MONDAY_S + WEEK_S + 10
    late, prompt = {slot_at(MONDAY_S + 60): 3}, {slot_at(now_s): 4}
    one = add_counts(add_counts(begin(MONDAY_S), late, now_s), prompt, now_s)
    other = add_counts(add_counts(begin(MONDAY_S), prompt, now_s), late, now_s)
    assert one == other
    prompt_first = add_counts(begin(MONDAY_S), {**late}, MONDAY_S + 100)
    assert add_counts(prompt_first, prompt, now_s).levels == pytest.approx(one.levels)


def test_a_clock_that_goes_back_breaks_nothing() -> None:
    """Instances differ by seconds; across the week's border, too."""
    week_s = (MONDAY_S // WEEK_S + 1) * WEEK_S
    ahead = add_counts(begin(MONDAY_S), {slot_at(week_s + 1): 1}, week_s + 1)
    behind = add_counts(ahead, {slot_at(week_s - 1): 1}, week_s - 1)
    assert behind.week == ahead.week
    assert behind.lately_s == ahead.lately_s
    assert sum(behind.levels) == 1.5
    assert forecast(behind, week_s - 1, 300) >= 0


def test_the_state_is_small_and_survives_json() -> None:
    """It is read and written by every instance about once a minute."""
    encoded = msgspec.json.encode(FOUR_WEEKS)
    assert msgspec.json.decode(encoded, type=State) == FOUR_WEEKS
    assert len(encoded) < 5_000


@pytest.mark.parametrize(
    "data", [b"{}", b"[]", b'{"began_s": 0, "week": 0, "levels": [1.0]}', b'{"began_s": 0, "new": 1}']
)
def test_a_state_of_another_shape_is_refused(data: bytes) -> None:
    """So that a later version's blob is learned anew, not misread."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(data, type=State)
