"""`make bench` part `routing`: a day of traffic through the routing policies, by discrete events.

Runs the very functions of `shared.routing.policy`. Says nothing about this machine: service times come
from `routing.SPEEDS`, of which the GPU's is an assumption. Failures and timeouts are not simulated.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from shared.cards import Device
from shared.routing.policy import SPEEDS, BackendView, Decision, Policy, Speed, adaptive, fixed
from tests.benchmarks.traffic import DAY_S, Arrival, day_of, recorded_days, synthetic_counts

SEED = 3
PART_TEXTS = 500
"""As the router's setting: larger requests are served in parts side by side."""

GPU_IDLE_S = 300.0
GPU_WAKE_S = (20.0, 30.0)
"""Uniform; policies are told the middle, as the setting gpu_wake_s says."""

CPU_CONCURRENCY = 16
CPU_START_S = 8.0
CPU_IDLE_S = 60.0
CPU_INSTANCES = (1, 40)
"""Flex scales HTTP by concurrency: here each call beyond instances x perInstanceConcurrency adds one
instance. The start (host, imports, model) and the idle time are assumptions. One is always ready (Flex
bills it less than a busy one; paid_s does not tell them apart), 40 are the most."""

VOLUMES = (1_000, 3_000, 10_000, 30_000)
"""Requests a day."""

RECORDED_DAY = 16
"""Wednesday, 19 July 1995."""

_NEVER = float("inf")


@dataclass(eq=False, slots=True)
class Call:
    """One request at one backend. parts: chunks still to be answered."""

    arrival: Arrival
    parts: int = 0


@dataclass(eq=False, slots=True)
class Instance:
    """Serves its jobs side by side at equal shares, as the batcher does. Jobs are seconds of service.

    clock: service that each job has had since the instance stood; a job is done when it reaches its own
    entry. ready_s: when it is up. up_s: when it was asked for, and is paid from.
    """

    up_s: float
    ready_s: float
    clock: float = 0.0
    now_s: float = 0.0
    idle_since_s: float = 0.0
    jobs: list[tuple[float, int, Call]] = field(default_factory=list)

    def advance(self, now_s: float) -> None:
        start_s = max(self.now_s, self.ready_s)
        if self.jobs and now_s > start_s:
            self.clock += (now_s - start_s) / len(self.jobs)
        self.now_s = now_s

    def next_done_s(self) -> float:
        if not self.jobs:
            return _NEVER
        left = (self.jobs[0][0] - self.clock) * len(self.jobs)
        return max(self.now_s, self.ready_s) + max(left, 0.0)


@dataclass(slots=True)
class Outcome:
    """latencies_s: of each request, by kind. paid_s: seconds that instances were up or starting.
    wakes: of the GPU."""

    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    paid_s: dict[Device, float] = field(default_factory=lambda: {"cpu": 0.0, "gpu": 0.0})
    wakes: int = 0

    def percentile(self, share: float, kind: str | None = None) -> float:
        """Nearest rank, in seconds; of one kind of request, or of all."""
        kinds = [kind] if kind else list(self.latencies_s)
        values = sorted(value for name in kinds for value in self.latencies_s[name])
        return values[min(int(share * len(values)), len(values) - 1)]

    def figures(self) -> dict[str, float]:
        """What the report shows: seconds that were paid for, milliseconds that callers waited."""
        return {
            "GPU s": self.paid_s["gpu"],
            "wakes": self.wakes,
            "CPU s": self.paid_s["cpu"],
            **{f"p{share} ms": 1000 * self.percentile(share / 100) for share in (50, 95, 99)},
            "rerank p95 ms": 1000 * self.percentile(0.95, "rerank"),
        }


class Simulation:
    """One policy over one day. The router's view of the GPU is true: it is warm until it has been idle
    for gpu_idle_s, and a call that reaches it cold waits for it."""

    def __init__(
        self,
        policy: Policy,
        *,
        speeds: Mapping[Device, Speed] = SPEEDS,
        gpu_idle_s: float = GPU_IDLE_S,
    ) -> None:
        self._policy = policy
        self._speeds = speeds
        self._gpu_idle_s = gpu_idle_s
        self._rng = random.Random(SEED)
        self._instances: dict[Device, list[Instance]] = {"cpu": [Instance(0.0, 0.0)], "gpu": []}
        self._queued: dict[Device, int] = {"cpu": 0, "gpu": 0}
        self._calls = 0
        self._requests: dict[Device, int] = {"cpu": 0, "gpu": 0}
        self._outcome = Outcome()

    def run(self, arrivals: Sequence[Arrival]) -> Outcome:
        for arrival in arrivals:
            self._serve_until(arrival.at_s)
            self._route(arrival)
        self._serve_until(_NEVER)
        (always_ready,) = self._instances["cpu"]
        self._pay("cpu", always_ready, max(always_ready.now_s, DAY_S))
        return self._outcome

    def _route(self, arrival: Arrival) -> None:
        now_s = arrival.at_s
        decision = self._policy(arrival.work, self._views(now_s))
        device = decision.devices[0]
        if (decision.wake_gpu or device == "gpu") and not self._instances["gpu"]:
            self._start_gpu(now_s)
        self._requests[device] += 1
        if device == "cpu":
            self._scale_out(now_s)
        call = Call(arrival)
        self._queued[device] += arrival.work.tokens
        for texts in _chunks(arrival.work.texts):
            call.parts += 1
            self._add(device, call, arrival.work.tokens * texts / arrival.work.texts, now_s)

    def _start_gpu(self, now_s: float) -> None:
        self._outcome.wakes += 1
        self._instances["gpu"].append(_starting(now_s, self._rng.uniform(*GPU_WAKE_S)))

    def _views(self, now_s: float) -> dict[Device, BackendView]:
        gpu = self._instances["gpu"]
        warm = bool(gpu) and gpu[0].ready_s <= now_s
        waking_s = now_s - gpu[0].up_s if gpu and not warm else None
        return {
            "cpu": BackendView(True, True, None, self._queued["cpu"], self._requests["cpu"]),
            "gpu": BackendView(True, warm, waking_s, self._queued["gpu"], self._requests["gpu"]),
        }

    def _scale_out(self, now_s: float) -> None:
        instances = self._instances["cpu"]
        busy = self._requests["cpu"] > len(instances) * CPU_CONCURRENCY
        if busy and len(instances) < CPU_INSTANCES[1]:
            instances.append(_starting(now_s, CPU_START_S))

    def _add(self, device: Device, call: Call, tokens: float, now_s: float) -> None:
        """To the instance that is up and has fewest jobs."""
        ready = [item for item in self._instances[device] if item.ready_s <= now_s]
        instance = min(ready or self._instances[device], key=lambda item: len(item.jobs))
        instance.advance(now_s)
        size_bytes = call.arrival.work.size_bytes[device]
        service_s = tokens * size_bytes / self._speeds[device].byte_tokens_per_s
        self._calls += 1  # breaks ties in the heap, in order of arrival
        heapq.heappush(instance.jobs, (instance.clock + service_s, self._calls, call))

    def _serve_until(self, until_s: float) -> None:
        """Finish what is done by then, in order of time, and stop what has idled too long."""
        while True:
            done_s, device, instance = min(
                (
                    (item.next_done_s(), device, item)
                    for device, items in self._instances.items()
                    for item in items
                ),
                key=lambda event: event[0],
            )
            stop_s = min(done_s, until_s)
            self._stop_idle(stop_s)
            if done_s > until_s or done_s == _NEVER:
                return
            instance.advance(done_s)
            _, _, call = heapq.heappop(instance.jobs)
            instance.idle_since_s = done_s
            call.parts -= 1
            if not call.parts:
                self._answer(call, device, done_s)

    def _answer(self, call: Call, device: Device, now_s: float) -> None:
        self._queued[device] -= call.arrival.work.tokens
        self._requests[device] -= 1
        latency_s = now_s - call.arrival.at_s + self._speeds[device].overhead_s
        self._outcome.latencies_s.setdefault(call.arrival.kind, []).append(latency_s)

    def _stop_idle(self, now_s: float) -> None:
        for device, instances in self._instances.items():
            idle_s, keep = (self._gpu_idle_s, 0) if device == "gpu" else (CPU_IDLE_S, CPU_INSTANCES[0])
            for instance in instances[keep:]:
                stopped_s = instance.idle_since_s + idle_s
                if not instance.jobs and stopped_s <= now_s:
                    instances.remove(instance)
                    self._pay(device, instance, stopped_s)

    def _pay(self, device: Device, instance: Instance, until_s: float) -> None:
        self._outcome.paid_s[device] += until_s - instance.up_s


def _starting(now_s: float, start_s: float) -> Instance:
    ready_s = now_s + start_s
    return Instance(up_s=now_s, ready_s=ready_s, now_s=now_s, idle_since_s=ready_s)


def _chunks(texts: int) -> list[int]:
    whole, rest = divmod(texts, PART_TEXTS)
    return [PART_TEXTS] * whole + [rest] * (rest > 0)


def _only(device: Device) -> Policy:
    return lambda work, views: Decision((device,), False, "an anchor")


POLICIES: Mapping[str, Policy] = {
    "fixed, 10 texts": fixed(10),
    "adaptive": adaptive(sum(GPU_WAKE_S) / 2),
    "always CPU": _only("cpu"),
    "always GPU": _only("gpu"),
}


def report() -> Iterator[tuple[str, dict[str, Outcome]]]:
    """(what day, outcome of each policy) for each day and volume."""
    days: dict[str, Sequence[float]] = {
        "synthetic day": synthetic_counts(SEED),
        "recorded day (arrivals; sizes assumed)": recorded_days()[RECORDED_DAY].counts,
    }
    for name, counts in days.items():
        for requests in VOLUMES:
            arrivals = day_of(counts, requests, SEED)
            outcomes = {policy: Simulation(decide).run(arrivals) for policy, decide in POLICIES.items()}
            yield f"{name}, {len(arrivals)} requests", outcomes
