"""Replicas come and go by what waits, on a real Ray; a GPU is a number to it here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from functions.cluster.sizes import Sizes
from shared.models.store import open_store
from shared.settings import Settings
from tests.cluster.models import SLOW
from tests.cluster.running import deploy, replicas_of, running_cluster, scrape
from tests.patience import wait_until
from tests.server import http_post
from tests.tiny import Tiny

BOTH = Tiny("both", dimensions=16)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """With one GPU, as far as Ray knows."""
    with running_cluster(num_cpus=8, num_gpus=1) as port:
        yield f"http://127.0.0.1:{port}"


def test_waiting_tokens_bring_replicas_and_idleness_takes_them(cluster: str, tmp_path: Path) -> None:
    """No request fails when they come, nor when they go."""
    SLOW.publish(open_store(Settings(model_store=f"file://{tmp_path}")))
    sizes = Sizes(
        cpu_replicas=1,
        max_cpu_replicas=2,
        tokens_per_replica=500,
        upscale_s=0,
        downscale_s=1,
        drain_s=20,
    )
    deploy(tmp_path, sizes)
    texts = ["w1 w2 w3 w4 w5 w6"] * 40
    statuses: Counter[int] = Counter()

    def ask(_: int) -> None:
        while len(replicas_of("cpu")) < 2:
            response = http_post(f"{cluster}/embed", json={"model": "slow", "inputs": texts})
            statuses[response.status_code] += 1
            assert np.allclose(np.array(response.json()), SLOW.vectors(texts), atol=1e-5)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(8)))

    def asks_while_it_goes() -> bool:
        response = http_post(f"{cluster}/embed", json={"model": "slow", "inputs": "w1"})
        statuses[response.status_code] += 1
        return len(replicas_of("cpu")) == 1

    wait_until(asks_while_it_goes)
    assert set(statuses) == {200}


def test_the_gpu_comes_from_zero_and_goes_back(cluster: str, tmp_path: Path) -> None:
    """Until it is there the CPU answers; when nothing was asked of it for a while, it is gone."""
    store = open_store(Settings(model_store=f"file://{tmp_path}"))
    BOTH.publish(store, "cpu-fp32", "gpu-fp16")
    deploy(
        tmp_path,
        Sizes(max_gpu_replicas=1, gpu_replica_cpus=1, downscale_s=1),
        allow_cpu=True,
        routing="adaptive",
        gpu_idle_s=3.0,
        gpu_wake_s=5.0,
    )
    body = {"model": "both", "inputs": ["w1 w2", "w3"]}

    def answered_by(headers: dict[str, str]) -> str:
        response = http_post(f"{cluster}/embed", json=body, headers=headers)
        assert response.status_code == 200
        assert np.allclose(np.array(response.json()), BOTH.vectors(body["inputs"]), atol=2e-3)
        return str(response.headers["x-compute-type"])

    assert not replicas_of("gpu")
    assert answered_by({}) == "cpu"
    assert _scraped(cluster) == {"router", "cpu"}
    assert not replicas_of("gpu")  # a scrape wakes none
    assert answered_by({"x-blitz-backend": "gpu"}).startswith("gpu")

    def all_scraped() -> bool:
        answered_by({"x-blitz-backend": "gpu"})  # an idle replica soon goes
        return _scraped(cluster) == {"router", "cpu", "gpu"}

    wait_until(all_scraped)
    assert len(replicas_of("gpu")) == 1
    wait_until(lambda: not replicas_of("gpu"))
    assert answered_by({}) == "cpu"


def _scraped(url: str) -> set[str]:
    """Deployments whose replicas one scrape has."""
    return {deployment for deployment, _ in scrape(url, "blitz_ready")}
