"""Starts a Ray of this machine, or joins the one that RAY_ADDRESS names."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

import ray

from shared.errors import Unavailable

OPTIONS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to Ray's makers
    # A request's path in fewer threads, and gRPC between replicas (docs/measurements/cluster.md).
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Part of that, and of no use without HAProxy: a port on each router replica, on all interfaces.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
}
"""Of Ray's processes, which read them from their environment; who has set one keeps it."""


def start_ray(environ: MutableMapping[str, str], *, log_to_driver: bool, **of_a_local_one: Any) -> None:
    """environ: of this process, which Ray reads too, and gets OPTIONS.

    Raises Unavailable if nothing answers at RAY_ADDRESS.
    """
    for name, value in OPTIONS.items():
        environ.setdefault(name, value)
    address = environ.get("RAY_ADDRESS")
    # Without an address Ray would join one of this machine that somebody else has started.
    options = {} if address else {"address": "local", **of_a_local_one}
    try:
        ray.init(log_to_driver=log_to_driver, logging_level=logging.WARNING, **options)
    except (ConnectionError, ray.exceptions.RaySystemError):
        raise Unavailable(f"no Ray cluster answers at {address}, which RAY_ADDRESS names") from None
