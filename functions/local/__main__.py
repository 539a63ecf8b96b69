"""The service on one machine, no Azure: router and CPU backend in one process, or each in its own.

Serves the same app objects as Functions does; only the HTTP server differs. BLITZ_ROLE selects the app,
as in Azure: with cpu or gpu it is a standalone backend.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from importlib import import_module
from typing import Annotated

import typer
from msgspec.structs import replace
from starlette.types import ASGIApp

from functions.api.app import create_app as create_router
from functions.api.build import connect, connect_batches
from functions.api.known_keys import KnownKeys, connect_keys
from functions.api.unknown_models import warn_of_unknown_models
from functions.backend import app
from functions.http.startup import log_request_limits
from functions.local.driver import Driver, bulk_hint, driver_of, make_inboxes
from functions.local.models import cards_at_start
from functions.local.processes import BAD_START, running_backends
from functions.local.server import Server, accept_connections, connection_limit, listen
from shared.cards import Device, ModelCard
from shared.command_line import command_of
from shared.errors import BlitzError, Misconfigured
from shared.observability import logs
from shared.observability.start import start_export
from shared.settings import Settings, log_format_of
from shared.storage.connect import local_storage, open_storage

GRACE_S = 5
"""Grace period for requests in progress when the server stops."""

_log = logging.getLogger("functions.local")  # __name__ is __main__ here
_start = logging.getLogger(logs.START)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 7071,
    model_store: Annotated[str, typer.Option(help="file://FOLDER or a blob container's URL.")] = "",
    separate: Annotated[
        bool,
        typer.Option(
            "--separate", help="Run the CPU and GPU backends as processes, on the next two ports."
        ),
    ] = False,
) -> None:
    """Serve the router and the CPU backend in one process. BLITZ_ variables configure the rest."""
    leaving = _leave_on_signals()
    with ExitStack() as stack:
        logs.use(log_format_of(os.environ), "router")
        try:
            settings = Settings.from_env(os.environ)
            logs.use(settings.log_format, settings.role)
            if model_store:
                settings = replace(settings, model_store=model_store)
            if separate and settings.role != "router":
                raise Misconfigured("--separate starts a router and its backends: unset BLITZ_ROLE")
            _check_secret(settings, host)
            cards = cards_at_start(settings)
            listener = stack.enter_context(listen(host, port))
            bound = listener.getsockname()[1]
            if separate:
                settings = stack.enter_context(running_backends(settings, os.environ, bound + 1))
            start_export(settings)
            keys = connect_keys(settings) if settings.role == "router" else None
            app, driver = _app(_warming(settings, cards or []), keys)
        except BlitzError as error:
            _log.error("%s", error)
            raise typer.Exit(BAD_START) from error
        if leaving.is_set():
            raise typer.Exit
        # Listen once the app exists, because others poll for it, and before the log says that it does.
        accept_connections(listener)
        connections = connection_limit(settings.max_connections)
        log_request_limits(settings, connections)
        if settings.role == "router":
            _log_start(f"http://{host}:{bound}", cards or [], keys, settings.page)
            if driver or separate:
                make_inboxes(settings, cards or [])
                _start.info("bulk:   %s", bulk_hint(settings, cards or []))
            if keys is None and host not in _LOOPBACK:
                _log.warning("no key is needed: anyone who can reach %s can use this service", host)
            if cards is not None:
                warn_of_unknown_models(settings, cards)
        server = Server(
            app,
            max_connections=connections,
            keep_alive_s=settings.keep_alive_s,
            grace_s=GRACE_S,
        )
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_serve(server, listener, driver))


async def _serve(server: Server, listener: socket.socket, driver: Driver | None) -> None:
    """Serve HTTP and bulk work in one event loop, because models belong to one loop."""
    bulk = asyncio.create_task(driver.run()) if driver else None
    try:
        await server.serve(sockets=[listener])
    finally:
        if bulk:
            bulk.cancel()
            await asyncio.wait([bulk])


def _leave_on_signals() -> threading.Event:
    """On SIGINT, SIGTERM or SIGHUP exit with code 0 through every `finally`.

    uvicorn catches the first two while it serves, finishes requests, and raises them again. The returned
    event covers a signal during a finaliser (imports run some), where exceptions are ignored.
    """
    leaving = threading.Event()

    def leave(*_: object) -> None:
        leaving.set()
        sys.exit(0)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # SIGHUP is absent on Windows
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)
    return leaving


def _warming(settings: Settings, cards: list[ModelCard]) -> Settings:
    """`settings` that warm the first model, if models run in this process and none is named."""
    role, elsewhere = settings.role, settings.role == "router" and settings.cpu_backend_url
    device = "cpu" if role == "router" else role
    names = [card.name for card in cards if card.device == device]
    if settings.warm_models or elsewhere or not names:
        return settings
    return replace(settings, warm_models=(names[0],))


def _app(settings: Settings, keys: KnownKeys | None) -> tuple[ASGIApp, Driver | None]:
    """The ASGI app, and the driver of bulk work if models run in this process."""
    bulk = _bulk_settings(settings)
    batches = connect_batches(bulk) if bulk and settings.role == "router" else None
    if settings.role == "router" and settings.cpu_backend_url:
        return create_router(settings, *connect(settings), batches=batches, keys=keys), None
    device: Device = "gpu" if settings.role == "gpu" else "cpu"
    # Imported by name, so that the CPU backend never loads the GPU's dependencies.
    inference = import_module(f"functions.{device}").create_inference(settings)
    driver = driver_of(bulk, inference, device) if bulk else None
    if settings.role == "router":
        connected = connect(settings, inference)
        return create_router(settings, *connected, batches=batches, keys=keys), driver
    return app.create_app(settings, inference), driver


def _bulk_settings(settings: Settings) -> Settings | None:
    """Settings with a bulk storage; None if none is set and the store's account cannot hold it."""
    bulk = local_storage(settings)
    try:
        open_storage(bulk)
    except Misconfigured as error:
        if settings.storage:
            raise
        _start.info("bulk:   off, %s", error.message)
        return None
    return bulk


_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _check_secret(settings: Settings, host: str) -> None:
    """Require a secret for a standalone backend on a network, where no platform checks callers."""
    if settings.role != "router" and host not in _LOOPBACK and not settings.backend_secret:
        raise Misconfigured(
            f"a backend on {host} can be reached by others and needs BLITZ_BACKEND_SECRET, the same as "
            "its router's; without one it may listen on 127.0.0.1 only"
        )


def _log_start(url: str, cards: list[ModelCard], keys: KnownKeys | None, page: bool) -> None:
    turn_on = (
        f"off (local); {command_of('functions.keys')} prints a key and its hash for BLITZ_API_KEY_HASHES"
    )
    names = dict.fromkeys(card.name for card in cards)
    _start.info("models: %s", ", ".join(names) or "none yet")
    _start.info("keys:   %s", turn_on if keys is None else f"on ({len(keys)})")
    _start.info("docs:   %s/docs", url)
    if page:
        _start.info("page:   %s/", url)
    if not cards:
        return
    path: str
    body: dict[str, object]
    if embedding := next((card.name for card in cards if card.task == "embedding"), None):
        path, body = "/v1/embeddings", {"model": embedding, "input": "hello world"}
    else:
        path, body = "/rerank", {"model": cards[0].name, "query": "hello", "texts": ["hello world"]}
    headers = "-H 'Content-Type: application/json'" + (' -H "api-key: $KEY"' if keys is not None else "")
    _start.info("try:    curl -s %s%s %s -d %s", url, path, headers, shlex.quote(json.dumps(body)))


if __name__ == "__main__":
    typer.run(serve)
