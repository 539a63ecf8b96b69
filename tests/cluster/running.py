"""Starts Ray on this machine and the service on it, in one process for as long as a block lasts."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.serve.config import HTTPOptions

from functions.cluster.serve import APPLICATION, application
from functions.cluster.sizes import Sizes
from shared.settings import Settings
from tests.patience import wait_until
from tests.server import free_port, http_get


@contextmanager
def running_cluster(**options: Any) -> Iterator[int]:
    """Ray with CPUs enough for a few replicas, whatever this machine has; yields the port of HTTP."""
    port = free_port()
    options = options or {"num_cpus": 8}
    if "address" not in options:
        options |= {"address": "local", "include_dashboard": False}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        # Nodes of one machine would share the port, and a node that goes would cut off its callers.
        serve.start("HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=port))
        yield port
    finally:
        serve.shutdown()
        ray.shutdown()


def running_service(
    store: Path, port: int, sizes: Sizes | None = None, **settings: Any
) -> Iterator[str]:
    """The service over `store`; yields its URL."""
    deploy(store, sizes, **settings)
    yield f"http://127.0.0.1:{port}"


def deploy(store: Path, sizes: Sizes | None = None, **settings: Any) -> None:
    """Deploy it, or deploy it anew; returns once it is up."""
    sizes = sizes or Sizes(cpu_replicas=2, max_cpu_replicas=2, drain_s=5)
    settings = {"model_store": f"file://{store}", "cache_models": 3, "refresh_s": 1.0, **settings}
    serve.run(application(Settings(**settings), sizes), name=APPLICATION, route_prefix="/")


def replicas_of(deployment: str) -> dict[str, Any]:
    """Actors of the deployment's running replicas, by name."""
    prefix = f"SERVE_REPLICA::{APPLICATION}#{deployment}#"
    found = {}
    for each in ray.util.list_named_actors(all_namespaces=True):
        if each["name"].startswith(prefix):
            with suppress(ValueError):  # it has died since
                found[each["name"]] = ray.get_actor(each["name"], namespace=each["namespace"])
    return found


def wait_until_up(url: str) -> None:
    """Until /ready says that every model that is wanted is there."""
    wait_until(lambda: http_get(f"{url}/ready").status_code == 200)


def scrape(url: str, name: str) -> dict[tuple[str, str], float]:
    """A metric's samples, summed by deployment and replica."""
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for family in text_string_to_metric_families(http_get(f"{url}/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                sums[sample.labels["deployment"], sample.labels["replica"]] += sample.value
    return sums
