"""Ray Serve's request router that ranks replicas by the models they hold.

What it knows of replicas: what they told Ray's controller (Replica.record_routing_stats), and what it
sent them since. functions.cluster.placement decides.
"""

from __future__ import annotations

import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from functions.cluster.placement import Holding, View, rank

STATS_PERIOD_S = 1.0
"""How often the controller asks replicas what they hold."""

UNCONFIRMED_S = 3 * STATS_PERIOD_S
"""A model that was sent to a replica counts as loading there for so long, unless the replica tells."""


class ByHeldModels(RequestRouter):
    """Each request goes to the first replica with room, in the order of placement.rank."""

    def initialize_state(self, **_: Any) -> None:
        self._sent: dict[tuple[ReplicaID, str], float] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        if pending_request is None or not pending_request.metadata.multiplexed_model_id:
            return [candidate_replicas]
        model = pending_request.metadata.multiplexed_model_id
        by_key = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        views = [self._view(key, replica, model) for key, replica in by_key.items()]
        return [[by_key[key] for key in group] for group in rank(model, views)]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        model = pending_request.metadata.multiplexed_model_id
        if model:
            now = time.monotonic()
            self._sent[replica_id, model] = now
            if len(self._sent) > _MANY:
                self._sent = {key: at for key, at in self._sent.items() if now - at < UNCONFIRMED_S}

    def _view(self, key: str, replica: RunningReplica, model: str) -> View:
        told = replica.routing_stats
        warm, loading = told.get("warm", ()), told.get("loading", ())
        sent_at = self._sent.get((replica.replica_id, model), float("-inf"))
        holding: Holding = "no"
        if model in warm:
            holding = "warm"
        elif model in loading or time.monotonic() - sent_at < UNCONFIRMED_S:
            holding = "loading"
        requests = self.replica_queue_len_cache.get(replica.replica_id) or 0
        return View(key, holding, told.get("free", 1), requests)


_MANY = 10_000
