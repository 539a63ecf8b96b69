"""`make bench` part `warmup`: weeks of traffic, and what waking the GPU ahead spares and costs.

Runs the very functions of `shared.routing.forecast` and `shared.routing.policy` over the discrete events
of `tests.benchmarks.routing`. Weeks are recorded ones of a web server, or synthetic; the forecast learns
from the first ones, and only the last one is reported. One counter sees every request: several routers
and what is lost when one of them dies are not simulated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from shared.cards import Device
from shared.routing.forecast import (
    TICK_S,
    WEEK_S,
    State,
    add_counts,
    advance,
    begin,
    should_wake,
    slot_at,
)
from shared.routing.policy import BackendView, Policy, adaptive, fixed, wants_gpu
from tests.benchmarks.routing import GPU_IDLE_S, GPU_WAKE_S, SEED, Outcome, Simulation
from tests.benchmarks.traffic import (
    DAY_S,
    Arrival,
    Day,
    arrivals_of,
    office_counts,
    recorded_days,
    synthetic_counts,
    synthetic_days,
)

VOLUMES = (300, 1_000, 3_000, 10_000)
"""Requests of a working day; about a fifth of them is for the GPU."""

TRAINING_WEEKS = 4
GPU_S_PER_REQUEST = (60.0, 180.0, 600.0)
WAKE_S = sum(GPU_WAKE_S) / 2
MONDAY_S = 4 * DAY_S
"""When the first day begins: 1970 began with a Thursday."""

POLICIES: Mapping[str, Policy] = {"fixed, 10 texts": fixed(10), "adaptive": adaptive(WAKE_S)}
DAYS = 7 * (TRAINING_WEEKS + 1)
SHAPES: Mapping[str, Callable[[], Sequence[Day]]] = {
    "recorded": lambda: recorded_days()[-DAYS:],
    "office hours": lambda: synthetic_days(office_counts, DAYS, SEED),
    "round the clock": lambda: synthetic_days(synthetic_counts, DAYS, SEED),
}
_NOBODY: Mapping[Device, BackendView] = {
    "cpu": BackendView(True, True, None, 0),
    "gpu": BackendView(True, True, None, 0),
}


@dataclass(slots=True)
class Week:
    """outcome: of the last week. wanted: requests for the GPU; cold: of them, those that found it down.

    ahead: times it was woken before it was wanted, or kept up.
    """

    outcome: Outcome
    wanted: int = 0
    cold: int = 0
    ahead: int = 0

    def figures(self) -> dict[str, float]:
        """What the report shows; p95 and p99 are of all requests."""
        return {
            "cold": self.cold,
            "of": self.wanted,
            "GPU s": self.outcome.paid_s["gpu"],
            "ahead": self.ahead,
            "p95 ms": 1000 * self.outcome.percentile(0.95),
            "p99 ms": 1000 * self.outcome.percentile(0.99),
            "rerank p95 ms": 1000 * self.outcome.percentile(0.95, "rerank"),
        }


class WeekSimulation(Simulation):
    """One policy over some days, with ticks of the timer between the requests.

    state: what was learned before; None: nobody wakes the GPU ahead.
    """

    def __init__(
        self,
        policy: Policy,
        state: State | None,
        *,
        gpu_s_per_request: float = 0.0,
        gpu_idle_s: float = GPU_IDLE_S,
    ) -> None:
        super().__init__(policy, gpu_idle_s=gpu_idle_s)
        self._state = state
        self._gpu_s_per_request = gpu_s_per_request
        self._counts: Counter[int] = Counter()
        self._week = Week(self._outcome)

    def run_days(self, arrivals: Sequence[Arrival], start_s: float, end_s: float) -> Week:
        """arrivals: within start_s and end_s."""
        tick_s = start_s
        for arrival in [*arrivals, None]:
            until_s = end_s if arrival is None else arrival.at_s
            while tick_s <= until_s:
                self._serve_until(tick_s)
                self._tick(tick_s)
                tick_s += TICK_S
            self._serve_until(until_s)
            if arrival is not None:
                self._notice(arrival)
                self._route(arrival)
        self._serve_until(float("inf"))
        return self._week

    def _notice(self, arrival: Arrival) -> None:
        views = self._views(arrival.at_s)
        if wants_gpu(self._policy, arrival.work, views):
            self._week.wanted += 1
            self._week.cold += not views["gpu"].warm
            self._counts[slot_at(arrival.at_s + MONDAY_S)] += 1

    def _tick(self, at_s: float) -> None:
        if self._state is None:
            return
        now_s = at_s + MONDAY_S
        state = add_counts(self._state, self._counts, now_s)
        self._counts.clear()
        woken = should_wake(
            state,
            now_s,
            wake_s=WAKE_S,
            idle_s=self._gpu_idle_s,
            gpu_s_per_request=self._gpu_s_per_request,
        )
        self._state = advance(state, now_s, woken=woken)
        if woken:
            self._week.ahead += 1
            self._keep_gpu(at_s)

    def _keep_gpu(self, at_s: float) -> None:
        if not self._instances["gpu"]:
            self._start_gpu(at_s)
        (gpu,) = self._instances["gpu"]
        gpu.idle_since_s = max(gpu.idle_since_s, at_s)


def learn(policy: Policy, arrivals: Sequence[Arrival], end_s: float) -> State:
    """What the forecast knows at end_s, of requests that met a GPU that was up."""
    counts = Counter(
        slot_at(each.at_s + MONDAY_S) for each in arrivals if wants_gpu(policy, each.work, _NOBODY)
    )
    state = begin(MONDAY_S)
    for slot in sorted(counts):
        state = add_counts(state, {slot: counts[slot]}, min((slot + 1) * 3600, end_s + MONDAY_S))
    return state


def compare(days: Sequence[Day], requests: int, policy: Policy) -> dict[str, Week]:
    """The last week, the others being learned from: without a forecast, with it at several prices, and
    with twice the cool-down instead. days: whole weeks, from a Monday."""
    arrivals = arrivals_of(days, requests, SEED)
    end_s = len(days) * DAY_S
    start_s = end_s - WEEK_S
    past = [each for day in arrivals[:-7] for each in day]
    week = [each for day in arrivals[-7:] for each in day]
    state = learn(policy, past, start_s)
    weeks = {"none": WeekSimulation(policy, None).run_days(week, start_s, end_s)}
    for price in GPU_S_PER_REQUEST:
        simulation = WeekSimulation(policy, state, gpu_s_per_request=price)
        weeks[f"{price:.0f} s"] = simulation.run_days(week, start_s, end_s)
    patient = WeekSimulation(policy, None, gpu_idle_s=2 * GPU_IDLE_S)
    weeks["none, cool-down 600 s"] = patient.run_days(week, start_s, end_s)
    return weeks


def stop(requests: int, price: float, silent_weeks: int) -> list[float]:
    """GPU seconds of each week in which nobody comes any more, after weeks of office hours."""
    policy = POLICIES["fixed, 10 texts"]
    days = synthetic_days(office_counts, 7 * TRAINING_WEEKS, SEED)
    start_s = TRAINING_WEEKS * float(WEEK_S)
    arrivals = arrivals_of(days, requests, SEED)
    state = learn(policy, [each for day in arrivals for each in day], start_s)
    simulation = WeekSimulation(policy, state, gpu_s_per_request=price)
    paid = [0.0]
    for number in range(silent_weeks):
        begin_s = start_s + number * WEEK_S
        week = simulation.run_days([], begin_s + TICK_S, begin_s + WEEK_S)
        paid.append(week.outcome.paid_s["gpu"])
    return [after - before for before, after in pairwise(paid)]


def report() -> Iterator[tuple[str, dict[str, Week]]]:
    """(which week, outcome for each price) for each shape, policy and volume."""
    for shape, days_of in SHAPES.items():
        days = days_of()
        for name, policy in POLICIES.items():
            for requests in VOLUMES:
                yield (
                    f"{shape}, {requests} requests a working day, {name}",
                    compare(days, requests, policy),
                )
