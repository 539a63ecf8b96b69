"""A cluster of several nodes, of which one goes away."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ray.cluster_utils import Cluster

from functions.cluster.sizes import Sizes
from tests.cluster.load import under_load, until_more
from tests.cluster.models import MODELS
from tests.cluster.running import deploy, replicas_of, running_cluster, wait_until_up
from tests.patience import wait_until

HEAD = {
    "num_cpus": 6,
    "include_dashboard": False,
    # So that a node counts as gone after seconds, not half a minute.
    "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 4},
}


def test_nodes_removed_under_load(store_folder: Path) -> None:
    """The router's node stays, which alone has the CPUs for it; the others' replicas come back there.
    From then on no request fails."""
    nodes = Cluster(initialize_head=True, head_node_args=HEAD)
    try:
        workers = [nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)]
        nodes.wait_for_nodes()
        with running_cluster(address=nodes.address) as port:
            url = f"http://127.0.0.1:{port}"
            deploy(store_folder, Sizes(router_cpus=2, cpu_replicas=4, max_cpu_replicas=4))
            wait_until_up(url)
            with under_load(url, MODELS[:3]) as statuses:
                until_more(statuses)
                before = replicas_of("cpu").keys()
                for worker in workers:
                    nodes.remove_node(worker, allow_graceful=False)
                wait_until(lambda: bool(before - replicas_of("cpu").keys()))  # those that they had
                wait_until(lambda: len(replicas_of("cpu")) == 4)
                until_more(statuses)
                failed = _failed(statuses)
                until_more(statuses, 100)
                assert _failed(statuses) == failed
    finally:
        nodes.shutdown()


def _failed(statuses: Counter[int]) -> int:
    return statuses.total() - statuses[200]
