"""One /metrics for all replicas: their texts together, each sample labelled with its replica.

So one scrape of the service finds every process of it, wherever they run. Does not know what is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from ray.serve.exceptions import RayServeException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.observability import metrics

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

SCRAPE_S = 5.0
"""A deployment with a replica that takes longer is left out: the others are worth a scrape."""


class FleetMetrics:
    """ASGI middleware: answers GET /metrics with `render` where `app` would answer it, keys included."""

    def __init__(self, app: ASGIApp, render: Callable[[], Awaitable[bytes]]) -> None:
        self._app = app
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/metrics" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        answered: list[Message] = []

        async def keep(message: Message) -> None:
            answered.append(message)

        await self._app(scope, receive, keep)
        if answered[0]["status"] != 200:
            for message in answered:
                await send(message)
            return
        response = Response(await self._render(), media_type=metrics.CONTENT_TYPE)
        await response(scope, receive, send)


async def gather(handles: Mapping[str, DeploymentHandle[Any]]) -> bytes:
    """The metrics of all replicas of these deployments; one may have no replica."""
    told = await asyncio.gather(*map(_told, handles.values()))
    return merge(
        {
            (deployment, replica): text.decode()
            for deployment, answers in zip(handles, told, strict=True)
            for replica, text in answers
        }
    )


async def _told(handle: DeploymentHandle[Any]) -> list[tuple[str, bytes]]:
    """Each replica's name and metrics."""
    try:
        answers = await handle.broadcast("render_metrics").results_async(
            timeout_s=SCRAPE_S, return_exceptions=True
        )
    except (TimeoutError, RayServeException):  # the latter where there is no replica
        return []
    return [each for each in answers if isinstance(each, tuple)]


def merge(texts: Mapping[tuple[str, str], str]) -> bytes:
    """Texts of Prometheus's format as one. texts: by deployment and replica.

    A family's lines must stand together, so they are gathered from all; HELP and TYPE are the first's.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for (deployment, replica), text in texts.items():
        labels = f'deployment="{deployment}",replica="{replica}"'
        family, is_new = "", False
        for line in text.splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                is_new = family not in heads
                heads.setdefault(family, [])
                samples.setdefault(family, [])
            if line.startswith("#"):
                if is_new:
                    heads[family].append(line)
            elif line:
                samples[family].append(_labelled(line, labels))
    lines = (line for family in heads for line in (*heads[family], *samples[family]))
    return "".join(f"{line}\n" for line in lines).encode()


def _labelled(line: str, labels: str) -> str:
    """`name{a="b"} 1` or `name 1` with more labels; a value has no brace and no space."""
    name, _, value = line.rpartition(" ")
    if name.endswith("}"):
        return f"{name[:-1]},{labels}}} {value}"
    return f"{name}{{{labels}}} {value}"
