"""The service on one machine, no Azure: the router's app with the CPU backend in the same process.

Serves the very app objects that Functions serves; only the HTTP server differs.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import socket
import sys
from typing import Annotated

import typer
import uvicorn

from functions.inference import build_inference
from functions.router import create_app
from shared.errors import BlitzError, Misconfigured
from shared.model_store import open_store
from shared.settings import Settings


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 7071,
    model_store: Annotated[str, typer.Option(help="file://FOLDER or a blob container's URL.")] = "",
) -> None:
    """Serve the router and the CPU backend in one process. BLITZ_ variables set everything else."""
    try:
        settings = Settings.from_env(os.environ)
        if model_store:
            settings = dataclasses.replace(settings, model_store=model_store)
        names = open_store(settings).names()
        if not names:
            raise Misconfigured(
                f"{settings.model_store} holds no model; build one with: "
                f"python -m model_build all-MiniLM-L6-v2 --target cpu-int8 --push {settings.model_store}"
            )
        settings = dataclasses.replace(settings, warm_models=settings.warm_models or (names[0],))
        app = create_app(settings, build_inference(settings))
        listener = listen(host, port)
    except (BlitzError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    _say_hello(f"http://{host}:{listener.getsockname()[1]}", names)
    config = uvicorn.Config(app, log_level="warning", lifespan="off", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises OSError.

    The protocol is named because asyncio turns Nagle's algorithm off only where it is; with it on, each
    answer waits 40 ms for the client's delayed acknowledgement.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


def _say_hello(url: str, names: list[str]) -> None:
    body = f'{{"model": "{names[0]}", "input": "hello world"}}'
    curl = f"curl -s {url}/v1/embeddings -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    print(f"models: {', '.join(names)}\nkeys:   off (local)\ndocs:   {url}/docs", flush=True)
    print(f"try:    {curl}", flush=True)


if __name__ == "__main__":
    typer.run(serve)
