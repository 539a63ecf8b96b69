"""Writes a config file for `serve deploy`, and for the serveConfigV2 of a RayService.

    $ python -m functions.cluster.config --model-store URL > serve.yaml
    $ serve deploy serve.yaml

BLITZ_ variables of this process go into the file as they are. Does not import Ray.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import typer

from functions.cluster.sizes import Sizes, sizes_of
from shared.errors import BlitzError, Misconfigured
from shared.settings import PREFIX, Settings

SECRETS = ("BLITZ_BACKEND_SECRET", "BLITZ_STORAGE_CONNECTION_STRING")
"""Not written into a file: a node's environment is the place, from a Kubernetes secret."""

GPU_ROUTING = {"BLITZ_ROUTING": "adaptive"}
"""The CPU covers while a GPU node is added, which takes minutes."""


def serve_config(
    environ: Mapping[str, str],
    sizes: Sizes,
    *,
    host: str = "0.0.0.0",  # noqa: S104 - in pods, behind a service
    port: int = 8000,
) -> dict[str, Any]:
    """The config file's content. Raises Misconfigured for invalid settings, and for secrets."""
    variables = {name: value for name, value in sorted(environ.items()) if name.startswith(PREFIX)}
    if told := [name for name in SECRETS if name in variables]:
        raise Misconfigured(f"{told[0]} must not stand in a file: set it in the nodes' environment")
    if sizes.max_gpu_replicas:
        variables = {**GPU_ROUTING, **variables}
    Settings.from_env(variables)
    application = {
        "name": "blitz",
        "route_prefix": "/",
        "import_path": "functions.cluster.serve:build",
        "args": msgspec.to_builtins(sizes),
        "runtime_env": {"env_vars": variables},
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [application],
    }


def main(
    model_store: Annotated[str, typer.Option(help="file://FOLDER or a blob container's URL.")],
    size: Annotated[
        list[str] | None, typer.Option(help="NAME=NUMBER, a field of functions.cluster.sizes.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on each node.", min=1, max=65535)] = 8000,
) -> None:
    """Print the config file."""
    import yaml  # Ray brings it

    try:
        given = dict(each.partition("=")[::2] for each in size or ())
        sizes = sizes_of({name: _number(name, value) for name, value in given.items()})
        environ = {**os.environ, "BLITZ_MODEL_STORE": model_store}
        config = serve_config(environ, sizes, port=port)
    except BlitzError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    print(yaml.safe_dump(config, sort_keys=False), end="")


def _number(name: str, value: str) -> float:
    try:
        return int(value) if value.isdecimal() else float(value)
    except ValueError:
        raise Misconfigured(f"{name} must be a number") from None


if __name__ == "__main__":
    typer.run(main)
