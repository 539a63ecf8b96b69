"""Ten times what the service can do, for a minute: what the accepted wait, what the refused are told.

The goal: accepted requests' p95 stays within twice the p95 of an idle service. BLITZ_MAX_QUEUE_S makes
that so. A request is accepted while what waits is expected to take no longer than that; then it waits
for this, and for the micro-batch that runs. So take less than half of what a usual request takes on an
idle service: with the default, 30 s, bursts wait and are not refused, and whole minutes of overload
mean that everybody waits half a minute.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.service import MODEL
from tests.questions import Answer, Question, asking, flood, seen
from tests.server import memory_mib, memory_of, started_service, wait_until_ready

MAX_QUEUE_S = 0.01
TEXTS = 4
"""In a request: about 400 tokens, one micro-batch or two."""
TIMES = 10
AFTERWARDS_S = 60.0


def run(store: Path, texts: list[str], seconds: float = 60.0) -> dict[str, float]:
    """Milliseconds and rates. Answers are checked to be vectors of the model's size."""
    with started_service(f"file://{store}", environ={"BLITZ_MAX_QUEUE_S": str(MAX_QUEUE_S)}) as (
        url,
        process,
    ):
        wait_until_ready(url, process)
        return asyncio.run(_measure(url, process.pid, texts, seconds))


async def _measure(url: str, pid: int, texts: list[str], seconds: float) -> dict[str, float]:
    endless = itertools.cycle(texts)

    def question() -> Question:
        inputs = list(itertools.islice(endless, TEXTS))
        return Question("many", "/embed", {"model": MODEL, "inputs": inputs}, _are_vectors)

    async with asking(url, question, clients=1) as warming:
        await seen(lambda: len(warming) >= 20)
    async with asking(url, question, clients=1) as alone:
        await seen(lambda: len(alone) >= 200, 600)
    async with asking(url, question, clients=3) as busy:
        began = time.perf_counter()
        await asyncio.sleep(5)
        capacity_per_s = sum(answer.right for answer in busy) / (time.perf_counter() - began)
    before_mib = memory_mib(pid)
    async with memory_of(pid) as peak:
        count = int(TIMES * capacity_per_s * seconds)
        answers = await flood(url, question, TIMES * capacity_per_s, count)
    at_the_end_mib = memory_mib(pid)
    await asyncio.sleep(AFTERWARDS_S)
    accepted = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    assert all(answer.right for answer in accepted)
    assert len(accepted) + len(refused) == len(answers), "each is answered, or told to come later"
    return {
        "capacity, requests/s": capacity_per_s,
        "asked, requests/s": TIMES * capacity_per_s,
        "accepted, requests/s": len(accepted) / seconds,
        "refused (429)": float(len(refused)),
        "unloaded p50, ms": _ms(alone, 50),
        "unloaded p95, ms": _ms(alone, 95),
        "accepted p50, ms": _ms(accepted, 50),
        "accepted p95, ms": _ms(accepted, 95),
        "accepted p95 / unloaded p95": _ms(accepted, 95) / _ms(alone, 95),
        "refused p95, ms": _ms(refused, 95),
        "memory before, MiB": before_mib,
        "memory at most, MiB": peak(),
        "memory at the end, MiB": at_the_end_mib,
        "memory a minute later, MiB": memory_mib(pid),
    }


def _are_vectors(answer: Any) -> bool:
    vectors = np.asarray(answer, np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    return vectors.shape == (TEXTS, 384) and bool(np.abs(lengths - 1).max() < 1e-5)


def _ms(answers: list[Answer], percent: float) -> float:
    return float(np.percentile([answer.seconds for answer in answers], percent)) * 1e3
