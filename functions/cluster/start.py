"""Starts a Ray of this machine, or joins the one that RAY_ADDRESS names."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

import ray

from shared.errors import Unavailable


def start_ray(environ: MutableMapping[str, str], *, log_to_driver: bool, **of_a_local_one: Any) -> None:
    """environ: of this process, which Ray reads too. Usage is not reported to Ray's makers.

    Raises Unavailable if nothing answers at RAY_ADDRESS.
    """
    environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = environ.get("RAY_ADDRESS")
    # Without an address Ray would join one of this machine that somebody else has started.
    options = {} if address else {"address": "local", **of_a_local_one}
    try:
        ray.init(log_to_driver=log_to_driver, logging_level=logging.WARNING, **options)
    except (ConnectionError, ray.exceptions.RaySystemError):
        raise Unavailable(f"no Ray cluster answers at {address}, which RAY_ADDRESS names") from None
