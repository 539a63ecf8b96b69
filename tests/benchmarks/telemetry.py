"""What the export to Azure costs a request: services that export and that do not, asked in turns.

The goal: less than 2 %. Each request is one short text, where a fixed cost a request weighs most. The
endpoint is a fake one on this machine, so its work slows requests too. Between two turns the exporter is
given time to send what it has, or the other services would pay for it. A second service that does not
export, compared in the same way, tells how far off these figures are.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from shared.observability.azure.export import SEND_S
from tests.benchmarks.service import MODEL
from tests.benchmarks.turns import ROUNDS, spread
from tests.ingestion import running_ingestion
from tests.server import started_service, wait_until_ready


@dataclass
class _Turns:
    """Of each turn the median request, requests a second, and the process's CPU time for one request."""

    median_ms: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def run(store: Path, texts: list[str], turns: int = ROUNDS, turn_s: float = 8.0) -> dict[str, float]:
    """Milliseconds, rates, and how much more each is with the export on."""
    with tempfile.TemporaryDirectory() as folder, running_ingestion() as ingestion:
        exporting = {
            "APPLICATIONINSIGHTS_CONNECTION_STRING": ingestion.connection_string,
            "TMPDIR": folder,
        }
        with (
            started_service(f"file://{store}") as (off_url, off),
            started_service(f"file://{store}") as (control_url, control),
            started_service(f"file://{store}", environ=exporting) as (on_url, on),
        ):
            wait_until_ready(off_url, off)
            wait_until_ready(control_url, control)
            wait_until_ready(on_url, on)
            services = {
                "off": (off_url, off.pid),
                "on": (on_url, on.pid),
                "off, control": (control_url, control.pid),
            }
            figures: dict[str, float] = {}
            for load, clients in (("1 client", 1), ("8 clients", 8)):
                figures |= _compare(load, services, clients, texts, turns, turn_s)
        assert ingestion.of_type("RequestData"), "the export was on"
    return figures


def _compare(
    load: str,
    services: dict[str, tuple[str, int]],
    clients: int,
    texts: list[str],
    turns: int,
    turn_s: float,
) -> dict[str, float]:
    for url, _ in services.values():
        asyncio.run(_ask(url, clients, texts, 2.0))
    seen = {name: _Turns() for name in services}
    for turn in range(turns):
        order = list(services) if turn % 2 else list(reversed(services))
        for name in order:
            url, pid = services[name]
            cpu_s = _cpu_s(pid)
            began = time.perf_counter()
            seconds = asyncio.run(_ask(url, clients, texts, turn_s))
            rate = len(seconds) / (time.perf_counter() - began)
            time.sleep(SEND_S + 0.5)
            seen[name].median_ms.append(statistics.median(seconds) * 1e3)
            seen[name].per_s.append(rate)
            seen[name].cpu_ms.append((_cpu_s(pid) - cpu_s) / len(seconds) * 1e3)
    off = seen.pop("off")
    figures = {
        f"{load}: off, median ms": statistics.median(off.median_ms),
        f"{load}: off, requests/s": statistics.median(off.per_s),
        f"{load}: off, CPU ms of a request": statistics.median(off.cpu_ms),
    }
    for name, turns_of in seen.items():
        figures |= {
            **_percent_more(turns_of.median_ms, off.median_ms, f"{load}: {name}, median, % more"),
            **_percent_more(turns_of.per_s, off.per_s, f"{load}: {name}, requests/s, % more"),
            **_percent_more(turns_of.cpu_ms, off.cpu_ms, f"{load}: {name}, CPU, % more"),
        }
    return figures


def _percent_more(these: list[float], off: list[float], name: str) -> dict[str, float]:
    """Turn by turn, so that what else the machine does at that time cancels out."""
    return spread([(a / b - 1) * 100 for a, b in zip(these, off, strict=True)]).figures(name)


async def _ask(url: str, clients: int, texts: list[str], seconds: float) -> list[float]:
    """Seconds of each request, one short text, of `clients` that ask again once they have an answer."""
    deadline = time.perf_counter() + seconds
    times: list[float] = []
    asked = 0

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal asked
        while time.perf_counter() < deadline:
            asked += 1
            text = texts[asked % len(texts)][:80]
            body = {"model": MODEL, "input": text, "encoding_format": "base64"}
            began = time.perf_counter()
            async with session.post(f"{url}/v1/embeddings", json=body) as response:
                await response.read()
                assert response.status == 200
            times.append(time.perf_counter() - began)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return times


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process, all threads. Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
