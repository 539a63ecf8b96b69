"""Which replicas a request goes to, by the models they hold: pure policy, no clocks, no Ray.

Does not know how replicas are called: functions.cluster.request_router supplies what it knows of them.
Several routers that know the same choose the same, without a word between them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Holding: TypeAlias = Literal["warm", "loading", "no"]

BUSY_REQUESTS = 32
"""A replica with so many requests in progress is busy: another one may be worth loading the model.

Simulated with 50 replicas and 100 models: at 8 the requests that wait for one model's load make its
neighbours look busy, and 81 of 1,000 requests wait for loads for ever; at 16 and 32 none do, at 64 the
hot models have too few replicas (p99 272 ms, not 23)."""


@dataclass(frozen=True, slots=True)
class View:
    """One replica as a router sees it. key: its name, the same for all routers.

    holding: whether it has the model of the request. free_places: models it may load before it evicts
    one that is in use. requests: in progress there.
    """

    key: str
    holding: Holding
    free_places: int
    requests: int


def rank(model: str, views: Sequence[View]) -> list[list[str]]:
    """Keys of the replicas in groups, best first: within a group the one with the shortest queue.

    A model that is held stays where it is, on all that have it, while one of them is not busy. When all
    are, one more replica with less than half of their requests gets it too: one request waits for that
    load, and the others stay with the holders until it is there. What nobody holds goes to the replica
    that all routers agree on: with a free place, not busy, by the hash of model and replica.
    """
    warm = [view for view in views if view.holding == "warm"]
    loading = [view for view in views if view.holding == "loading"]
    others = sorted(
        (view for view in views if view.holding == "no"),
        key=lambda view: (view.requests >= BUSY_REQUESTS, not view.free_places, _score(model, view.key)),
    )
    groups = [warm, loading]
    least = min((view.requests for view in warm or loading), default=0)
    if least >= BUSY_REQUESTS and not (warm and loading):
        idler = [view for view in others if view.requests * 2 < least]
        if idler:
            others.remove(idler[0])
            groups.insert(0, idler[:1])
    groups += [[view] for view in others]
    return [[view.key for view in group] for group in groups if group]


def free_places(places: int, held: Sequence[Collection[str]], asked_for: Collection[str]) -> int:
    """Of `places` for models, those that are empty or hold one that nobody asks for.

    held: the names of each model that a replica has loaded. asked_for: names in recent requests. Without
    the second kind a replica whose models are all hot would evict one for a new model, although another
    replica has only idle ones.
    """
    in_use = [names for names in held if any(name in asked_for for name in names)]
    return max(0, places - len(in_use))


def _score(model: str, key: str) -> bytes:
    """Rendezvous hashing: when replicas come or go, only their models move."""
    return hashlib.blake2b(f"{model}\0{key}".encode(), digest_size=8).digest()
