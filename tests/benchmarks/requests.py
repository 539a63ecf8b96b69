"""What a request costs beside the engine: answered by a backend that costs nothing, and refused.

Counts the processor time of the server alone, so that it does not matter what else the machine does: a
core does so many of them a second and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import aiohttp
import numpy as np
from prometheus_client import CollectorRegistry

from functions.api.app import create_app
from functions.local.server import Server, accept_connections, listen
from shared.cards import ModelCard
from shared.contracts import EmbedRequest, EmbedResult
from shared.errors import Overloaded
from shared.models.catalogue import Catalogue
from shared.observability.metrics import Telemetry
from shared.settings import Settings
from tests.fakes.backend import ByOperation

REQUESTS, WARM_UP, CLIENTS = 5_000, 500, 8
BODY = {"model": "free", "input": "how do I reset my password?", "encoding_format": "base64"}


class Free(ByOperation):
    """A model that needs no time. full: its queue has no room."""

    def __init__(self, full: bool) -> None:
        self._full = full
        self._vectors = np.zeros((1, 384), np.float32)

    def check(self) -> None:
        if self._full:
            raise Overloaded("too many requests are waiting: retry later", retry_after_s=1.0)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        return EmbedResult(self._vectors, (8,), request.model, "1")

    async def cards(self) -> list[ModelCard]:
        return [ModelCard("free", "1", "cpu-int8", "bert", "mean", 384, 256)]

    async def cards_of(self, name: str) -> list[ModelCard]:
        return [card for card in await self.cards() if card.name == name]


def run() -> dict[str, float]:
    """Requests a second and core."""
    return {f"{kind}, requests/s and core": _measure(kind) for kind in ("answered", "refused")}


def _measure(kind: str) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.requests", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1/embeddings"
        try:
            return asyncio.run(_per_s(url, server.pid))
        finally:
            server.terminate()


async def _per_s(url: str, pid: int) -> float:
    async with aiohttp.ClientSession() as session:
        await _ask(session, url, WARM_UP)
        before_s = _processor_s(pid)
        await _ask(session, url, REQUESTS)
        return REQUESTS / (_processor_s(pid) - before_s)


async def _ask(session: aiohttp.ClientSession, url: str, count: int) -> None:
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            async with session.post(url, json=BODY) as response:
                await response.read()
                assert response.status in (200, 429)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(kind: str) -> None:
    free = cast(Any, Free(full=kind == "refused"))
    app = create_app(Settings(), free, cast(Catalogue, free), Telemetry(CollectorRegistry()))
    with listen("127.0.0.1", 0) as listener:
        accept_connections(listener)
        print(listener.getsockname()[1], flush=True)
        Server(app, max_connections=100, keep_alive_s=60, grace_s=1).run([listener])


if __name__ == "__main__":
    _serve(sys.argv[1])
