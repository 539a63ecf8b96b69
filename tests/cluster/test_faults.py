"""What may end or go away on a cluster: each request gets one answer, right or an honest error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray

from functions.cluster.sizes import Sizes
from shared.models.store import open_store
from shared.settings import Settings
from tests.cluster.load import under_load, until_more
from tests.cluster.models import MODELS, SLOW
from tests.cluster.running import deploy, replicas_of, running_cluster, scrape
from tests.patience import wait_until
from tests.server import http_post
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray on this machine with nothing on it; yields the URL of its HTTP server."""
    with running_cluster() as port:
        yield f"http://127.0.0.1:{port}"


def test_a_replica_killed_in_a_request(cluster: str, store_folder: Path) -> None:
    """Its requests are asked for again on the other one: nobody sees it."""
    deploy(store_folder)
    with under_load(cluster, MODELS[:2]) as statuses:
        until_more(statuses)
        name, actor = next(iter(replicas_of("cpu").items()))
        ray.kill(actor)
        until_more(statuses, 200)
        wait_until(lambda: len(replicas_of("cpu").keys() - {name}) == 2)
    assert set(statuses) == {200}


def test_the_controller_killed_under_load(cluster: str, store_folder: Path) -> None:
    """Requests do not pass through it; Ray starts it again, and it finds its replicas."""
    deploy(store_folder)
    before = replicas_of("cpu").keys()
    with under_load(cluster, MODELS[:2]) as statuses:
        until_more(statuses)
        ray.kill(ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve"), no_restart=False)
        until_more(statuses, 200)
    assert set(statuses) == {200}
    assert replicas_of("cpu").keys() == before


def test_a_rolling_update_fails_no_request(cluster: str, store_folder: Path) -> None:
    """New replicas take over; those that end finish what they have."""
    deploy(store_folder)
    before = replicas_of("cpu").keys()
    with under_load(cluster, MODELS[:2]) as statuses:
        until_more(statuses)
        deploy(store_folder, cache_models=4)
        until_more(statuses, 100)
    assert set(statuses) == {200}
    wait_until(lambda: not replicas_of("cpu").keys() & before)


def test_a_new_revision_fails_no_request(cluster: str, tmp_path: Path) -> None:
    """Every replica finds it, one after the other; an answer of several parts is of one revision."""
    old, new = Tiny("turning", dimensions=8), Tiny("turning", dimensions=12)
    settings = Settings(model_store=f"file://{tmp_path}")
    old.publish(open_store(settings))
    deploy(tmp_path, part_texts=4)
    texts = [f"w{n}" for n in range(16)]
    expected = {8: old.vectors(texts), 12: new.vectors(texts)}

    def dimensions() -> set[int]:
        """Of the answers to many requests, which are all right."""

        def ask(_: int) -> int:
            response = http_post(f"{cluster}/embed", json={"model": "turning", "inputs": texts})
            assert response.status_code == 200, response.text
            rows = response.json()
            assert np.allclose(np.array(rows), expected[len(rows[0])], atol=1e-5)
            return len(rows[0])

        with ThreadPoolExecutor(16) as threads:
            return set(threads.map(ask, range(48)))

    assert dimensions() == {8}
    new.publish(open_store(settings), "cpu-int8")
    wait_until(lambda: dimensions() == {12})


def test_the_store_goes_away(cluster: str, store_folder: Path) -> None:
    """What is loaded is served; what is not is 503, in the dialect's shape, until the store is back."""
    deploy(store_folder, Sizes())
    body = {"model": "m0", "inputs": "w1"}
    assert http_post(f"{cluster}/embed", json=body).status_code == 200
    away = store_folder.with_name("away")
    store_folder.rename(away)
    try:
        assert http_post(f"{cluster}/embed", json=body).status_code == 200
        response = http_post(f"{cluster}/embed", json={**body, "model": "m5"})
        assert response.status_code == 503
        assert set(response.json()) == {"error", "error_type"}
    finally:
        away.rename(store_folder)
    wait_until(lambda: http_post(f"{cluster}/embed", json={**body, "model": "m5"}).status_code == 200)


def test_more_than_may_wait_is_refused(cluster: str, tmp_path: Path) -> None:
    """429 with a time to come back, from the replica's own queue; all that is let in is answered."""
    SLOW.publish(open_store(Settings(model_store=f"file://{tmp_path}")))
    deploy(tmp_path, Sizes(), queue_tokens=3000, max_requests=8)
    texts = ["w1 w2 w3 w4 w5 w6"] * 40
    body = {"model": "slow", "inputs": texts}

    def ask(_: int) -> httpx.Response:
        return http_post(f"{cluster}/embed", json=body)

    with ThreadPoolExecutor(24) as threads:
        responses = list(threads.map(ask, range(48)))
    statuses = Counter(response.status_code for response in responses)
    assert statuses.keys() == {200, 429}
    for response in responses:
        if response.status_code == 200:
            assert np.allclose(np.array(response.json()), SLOW.vectors(texts), atol=1e-5)
        else:
            assert int(response.headers["retry-after"]) >= 1


def test_who_leaves_frees_the_engine(cluster: str, tmp_path: Path) -> None:
    """What waits for a caller that has gone is not run."""
    SLOW.publish(open_store(Settings(model_store=f"file://{tmp_path}")))
    deploy(tmp_path, Sizes())
    body = {"model": "slow", "inputs": ["w1 w2 w3 w4 w5 w6"] * 2000}
    assert http_post(f"{cluster}/embed", json={"model": "slow", "inputs": "w1"}).status_code == 200
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{cluster}/embed", json=body, timeout=3)
    wait_until(lambda: sum(scrape(cluster, "te_queue_size").values()) == 0)
    assert sum(scrape(cluster, "te_batch_next_size_sum").values()) < 2000
