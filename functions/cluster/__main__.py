"""The service on a Ray cluster: starts a local one, or joins the one that RAY_ADDRESS names, and serves.

    $ python -m functions.cluster --model-store file://.blitz/models

BLITZ_ variables configure the rest, as of the other hosts.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from typing import Annotated

import ray
import typer
from msgspec.structs import replace
from ray import serve
from ray.serve import RunTarget
from ray.serve.config import HTTPOptions
from ray.serve.schema import ApplicationStatus

from functions.cluster.config import GPU_ROUTING
from functions.cluster.serve import APPLICATION, application
from functions.cluster.sizes import Sizes
from functions.cluster.start import start_ray
from functions.local.models import cards_at_start
from functions.local.processes import BAD_START
from shared.errors import BlitzError, Misconfigured, Unavailable
from shared.observability import logs
from shared.settings import Settings, log_format_of

STOPPING = (signal.SIGINT, signal.SIGTERM)

_log = logging.getLogger("functions.cluster")  # __name__ is __main__ here
_start = logging.getLogger(logs.START)


def main(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7071,
    model_store: Annotated[str, typer.Option(help="file://FOLDER or a blob container's URL.")] = "",
    cpus: Annotated[int, typer.Option(help="CPUs that a local Ray counts; 0: enough.", min=0)] = 0,
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
        if 0 < cpus < sizes.cpus and "RAY_ADDRESS" not in os.environ:
            raise Misconfigured(f"router and replicas take {sizes.cpus:g} CPUs, --cpus gives {cpus}")
        cards = cards_at_start(settings) or []  # none are known while a remote store does not answer
        serve_here(settings, sizes, host, port, cpus, list(dict.fromkeys(card.name for card in cards)))
    except BlitzError as error:
        _log.error("%s", error)
        raise typer.Exit(BAD_START) from error


def serve_here(
    settings: Settings, sizes: Sizes, host: str, port: int, cpus: int, names: list[str]
) -> None:
    """Start or join the cluster, serve until a signal, and take the application down again.

    Raises Unavailable if the cluster does not answer, or the application does not start.
    """
    cpus = cpus or max(os.cpu_count() or 1, math.ceil(sizes.cpus))
    start_ray(os.environ, log_to_driver=False, num_cpus=cpus, include_dashboard=False)
    stop = threading.Event()
    for number in STOPPING:  # after Ray, which has handlers of its own
        signal.signal(number, lambda *_: stop.set())
    try:
        serve.start(http_options=HTTPOptions(host=host, port=port))
        target = RunTarget(application(settings, sizes), name=APPLICATION, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)
        if _is_running(stop):
            _start.info("models: %s", ", ".join(names) or "none yet")
            _start.info("docs:   http://%s:%d/docs", host, port)
            stop.wait()
    finally:
        for number in STOPPING:  # a second one must not leave replicas behind
            signal.signal(number, signal.SIG_IGN)
        serve.shutdown()
        ray.shutdown()


def _is_running(stop: threading.Event) -> bool:
    """Return once it is, or with False after a signal. What a joined cluster waits for is logged."""
    told = ""
    while not stop.wait(0.2):
        status = serve.status().applications[APPLICATION]
        if status.status == ApplicationStatus.RUNNING:
            return True
        if status.status == ApplicationStatus.DEPLOY_FAILED:
            raise Unavailable(f"the service does not start: {status.message}")
        messages = [each.message for each in status.deployments.values() if each.message]
        if messages and messages[0] != told:
            told = messages[0]
            _log.warning("not up yet: %s", told)
    return False


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
