"""The service on a Ray cluster: starts a local one, or joins the one that RAY_ADDRESS names, and serves.

    $ python -m functions.cluster --model-store file://.blitz/models

BLITZ_ variables configure the rest, as of the other hosts.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import replace
from typing import Annotated

import ray
import typer
from ray import serve
from ray.serve.config import HTTPOptions

from functions.cluster.config import GPU_ROUTING
from functions.cluster.serve import APPLICATION, application
from functions.cluster.sizes import Sizes
from functions.local.models import cards_at_start
from functions.local.processes import BAD_START
from shared.errors import BlitzError, Misconfigured
from shared.observability import logs
from shared.settings import Settings, log_format_of

STOPPING = (signal.SIGINT, signal.SIGTERM)

_log = logging.getLogger("functions.cluster")  # __name__ is __main__ here
_start = logging.getLogger(logs.START)


def main(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7071,
    model_store: Annotated[str, typer.Option(help="file://FOLDER or a blob container's URL.")] = "",
    cpus: Annotated[int, typer.Option(help="CPUs of the local cluster; 0: this machine's.", min=0)] = 0,
    replicas: Annotated[int, typer.Option(help="CPU replicas, at least.", min=1)] = 1,
    max_replicas: Annotated[int, typer.Option(help="CPU replicas, at most; 0: as many.", min=0)] = 0,
    replica_cpus: Annotated[int, typer.Option(help="CPUs, engine threads, of one.", min=1)] = 1,
    gpus: Annotated[int, typer.Option(help="GPU replicas, at most.", min=0)] = 0,
) -> None:
    """Serve on a Ray cluster of this machine; RAY_ADDRESS names another one."""
    logs.use(log_format_of(os.environ), "router")
    try:
        settings = Settings.from_env({**(GPU_ROUTING if gpus else {}), **os.environ})
        logs.use(settings.log_format, settings.role)
        if model_store:
            settings = replace(settings, model_store=model_store)
        _check(settings)
        sizes = Sizes(
            cpu_replicas=replicas,
            max_cpu_replicas=max(replicas, max_replicas),
            replica_cpus=replica_cpus,
            max_gpu_replicas=gpus,
        )
        cards = cards_at_start(settings) or []  # none are known while a remote store does not answer
    except BlitzError as error:
        _log.error("%s", error)
        raise typer.Exit(BAD_START) from error
    serve_here(settings, sizes, host, port, cpus, list(dict.fromkeys(card.name for card in cards)))


def serve_here(
    settings: Settings, sizes: Sizes, host: str, port: int, cpus: int, names: list[str]
) -> None:
    """Start or join the cluster, serve until a signal, and take the application down again."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": cpus or None, "include_dashboard": False}
    ray.init(log_to_driver=False, logging_level=logging.WARNING, **local)
    stop = threading.Event()
    for number in STOPPING:  # after Ray, which has handlers of its own
        signal.signal(number, lambda *_: stop.set())
    try:
        serve.start(http_options=HTTPOptions(host=host, port=port))
        serve.run(application(settings, sizes), name=APPLICATION, route_prefix="/")
        _start.info("models: %s", ", ".join(names) or "none yet")
        _start.info("docs:   http://%s:%d/docs", host, port)
        stop.wait()
    finally:
        for number in STOPPING:  # a second one must not leave replicas behind
            signal.signal(number, signal.SIG_IGN)
        serve.shutdown()
        ray.shutdown()


def _check(settings: Settings) -> None:
    """Raises Misconfigured for settings of another host."""
    if settings.role != "router":
        raise Misconfigured("a cluster has router and backends: unset BLITZ_ROLE")
    if settings.cpu_backend_url or settings.gpu_backend_url:
        raise Misconfigured(
            "a cluster's backends are its own: unset BLITZ_CPU_BACKEND_URL and BLITZ_GPU_BACKEND_URL"
        )


if __name__ == "__main__":
    typer.run(main)
