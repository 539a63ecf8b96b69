"""How far a cluster of the service would go: measured CPU time a request, and a simulation from 1 to 200
replicas with it.

    $ .venv/cluster/bin/python -m tests.benchmarks.cluster_scale

CPU time, unlike a duration, hardly depends on what else a machine does. The simulation runs
functions.cluster.placement itself, over replicas with a queue, a cache of models and one thread.
"""

from __future__ import annotations

import heapq
import json
import os
import tempfile
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Any

from functions.cluster.placement import Holding, View, rank

TITLES = {
    "ray::ProxyActor": "Ray's HTTP proxy",
    "ray::ServeReplica:blitz:router": "router",
    "ray::ServeReplica:blitz:cpu": "CPU replica",
    "ray::ServeController": "controller",
}
REQUESTS = 600
PLACES, LOAD_S = 4, 0.5
"""Models a replica holds, and what loading one takes: what the benchmark measured, with other loads."""


def measure() -> dict[str, float]:
    """CPU milliseconds a short request in each kind of process, and the controller's a second."""
    from functions.cluster.sizes import Sizes
    from tests.benchmarks.cluster import MODELS, publish_copies
    from tests.cluster.running import deploy, running_cluster

    measured: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, running_cluster(num_cpus=12) as port:
        publish_copies(Path(folder))
        deploy(Path(folder), cache_models=6)
        connection = HTTPConnection("127.0.0.1", port)
        for number in range(-60, REQUESTS):
            if number == 0:
                before = _cpu_s()
            body = json.dumps({"model": MODELS[number % 6], "inputs": "what a caller may search for"})
            connection.request("POST", "/embed", body, {"content-type": "application/json"})
            assert connection.getresponse().read()
        after = _cpu_s()
        for name in ("Ray's HTTP proxy", "router", "CPU replica"):
            measured[f"{name}, CPU ms a request"] = (after[name] - before[name]) / REQUESTS * 1e3
        for replicas in (2, 8):
            sizes = Sizes(cpu_replicas=replicas, max_cpu_replicas=replicas)
            deploy(Path(folder), sizes, cache_models=6)
            time.sleep(5)
            before = _cpu_s()
            time.sleep(15)
            used = _cpu_s()["controller"] - before["controller"]
            measured[f"controller at {replicas} replicas, CPU ms a second"] = used / 15 * 1e3
    return {name: round(value, 2) for name, value in measured.items()}


def _cpu_s() -> dict[str, float]:
    """CPU seconds of Ray's processes so far, by kind. Linux only."""
    used = dict.fromkeys(TITLES.values(), 0.0)
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            for beginning, name in TITLES.items():
                if title.startswith(beginning):
                    used[name] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


@dataclass
class _Replica:
    key: str
    models: OrderedDict[str, float] = field(default_factory=OrderedDict)  # -> when it is loaded
    free_at: float = 0.0
    ends: list[float] = field(default_factory=list)
    loads: int = 0

    def serve(self, model: str, now: float, service_s: float) -> float:
        """When the request that comes now is answered: after those before it, and after a load."""
        loaded_at = self.models.pop(model, None)
        if loaded_at is None:
            self.loads += 1
            loaded_at = now + LOAD_S
            if len(self.models) >= PLACES:
                self.models.popitem(last=False)
        self.models[model] = loaded_at
        # Another model's requests go on while one loads: only its own wait.
        end = max(self.free_at, now) + service_s
        self.free_at = end
        end = max(end, loaded_at)
        heapq.heappush(self.ends, end)
        return end

    def requests(self, now: float) -> int:
        while self.ends and self.ends[0] <= now:
            heapq.heappop(self.ends)
        return len(self.ends)


def simulate(
    replicas: int,
    models: int,
    service_s: float,
    *,
    share: float = 0.7,
    seconds: float = 4.0,
    seed: int = 1,
) -> dict[str, float]:
    """Poisson arrivals at `share` of what the engines can do, for Zipf's popularity of the models.

    seconds: simulated, of which the second half counts, and at least 8,000 requests.
    """
    random = Random(seed)
    fleet = {f"r{n}": _Replica(f"r{n}") for n in range(replicas)}
    names = [f"m{n}" for n in range(models)]
    weights = [1 / rank for rank in range(1, models + 1)]
    rate = share * replicas / service_s
    requests = max(4000, int(seconds * rate / 2))
    now, took, loads_before = 0.0, [], 0
    for number in range(2 * requests):
        now += random.expovariate(rate)
        (model,) = random.choices(names, weights)
        views = [_view(each, model, now) for each in fleet.values()]
        group = rank(model, views)[0]
        chosen = min((fleet[key] for key in group), key=lambda each: len(each.ends))
        end = chosen.serve(model, now, service_s)
        if number == requests:  # the first half fills the caches
            loads_before = sum(each.loads for each in fleet.values())
        if number >= requests:
            took.append(end - now)
    took.sort()
    loads = sum(each.loads for each in fleet.values()) - loads_before
    return {
        "replicas": replicas,
        "models": models,
        "requests/s": round(rate),
        "p50 ms": round(took[len(took) // 2] * 1e3, 1),
        "p99 ms": round(took[int(len(took) * 0.99)] * 1e3, 1),
        "loads a 1,000 requests": round(loads / requests * 1000, 2),
    }


def _view(replica: _Replica, model: str, now: float) -> View:
    holding: Holding = "no"
    if model in replica.models:
        holding = "warm" if replica.models[model] <= now else "loading"
    return View(replica.key, holding, max(0, PLACES - len(replica.models)), replica.requests(now))


def main() -> None:
    measured: dict[str, Any] = measure()
    print(json.dumps(measured, indent=2), flush=True)
    service_s = measured["CPU replica, CPU ms a request"] / 1e3
    router_s = (
        measured["router, CPU ms a request"] + measured["Ray's HTTP proxy, CPU ms a request"]
    ) / 1e3
    few, many = (measured[f"controller at {n} replicas, CPU ms a second"] for n in (2, 8))
    a_replica = max(0.01, (many - few) / 6)
    for replicas in (1, 2, 5, 10, 20, 50, 100, 200):
        for models in (4, 2 * replicas, 8 * replicas):
            # With half as many models as places it takes longer until each has found its own.
            seconds = 14.0 if models == 2 * replicas else 4.0
            result = simulate(replicas, models, service_s, seconds=seconds)
            result["cores for router and proxy"] = round(result["requests/s"] * router_s, 1)
            result["controller, share of a core"] = round((few + a_replica * (replicas - 2)) / 1e3, 2)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
