"""What the router adds to a backend: one short text through it, against the same text asked directly."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import numpy as np

from shared.contracts import EmbedRequest
from shared.wire import codec, messages
from tests.server import free_port, started_service, wait_until_ready

MODEL = "all-MiniLM-L6-v2"
TEXT = "how do I reset my password?"
ROUNDS = 1500


def overhead(store: Path) -> dict[str, float]:
    """Milliseconds added at the median and at the 95th percentile, calls interleaved one by one."""
    url, port = f"file://{store}", free_port()
    backend = f"http://127.0.0.1:{port}"
    with (
        started_service(url, environ={"BLITZ_ROLE": "cpu"}, port=port) as (_, cpu),
        started_service(url, environ={"BLITZ_CPU_BACKEND_URL": backend}) as (router, process),
    ):
        wait_until_ready(backend, cpu)
        wait_until_ready(router, process)
        direct, routed = asyncio.run(_measure(backend, router))
    figures: dict[str, float] = {}
    for name, share in (("p50", 50), ("p95", 95)):
        straight, through = np.percentile(direct, share), np.percentile(routed, share)
        figures |= {f"backend directly, {name} ms": float(straight)}
        figures |= {f"router adds, {name} ms": float(through - straight)}
    return figures


async def _measure(backend: str, router: str) -> tuple[list[float], list[float]]:
    packed = messages.pack_request(EmbedRequest(MODEL, (TEXT,)))
    direct: list[float] = []
    routed: list[float] = []
    async with aiohttp.ClientSession() as session:

        async def ask(times: list[float], url: str, **body: object) -> None:
            started = time.perf_counter()
            async with session.post(url, **body) as response:  # type: ignore[arg-type]
                await response.read()
                assert response.status == 200
            times.append((time.perf_counter() - started) * 1e3)

        for _ in range(ROUNDS):
            headers = {"content-type": codec.CONTENT_TYPE}
            await ask(direct, f"{backend}/embed", data=packed, headers=headers)
            body = {"model": MODEL, "input": TEXT, "encoding_format": "base64"}
            await ask(routed, f"{router}/v1/embeddings", json=body)
    warm = ROUNDS // 10
    return direct[warm:], routed[warm:]
