"""Mixed requests over more models than the cache holds: is every answer right, and does memory stay?"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

from tests.questions import Answer, Question, asking, mixed, seen
from tests.server import memory_mib, metrics_of, started_service, wait_until_ready
from tests.tiny import Tiny, publish_all

CACHE_MODELS = 3
CLIENTS = 6
TINIES = (
    *(Tiny(f"embed-{n}", dimensions=dimensions) for n, dimensions in enumerate((8, 16, 16, 32, 48, 64))),
    *(Tiny(f"rerank-{n}", task="cross-encoder") for n in range(2)),
)


def run(requests: int = 20_000, seed: int = 0) -> dict[str, float]:
    """How many of each kind were asked, how many answers were wrong, evictions and memory in MiB.

    Errors on purpose count as right when they are the right ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder) / 'models'}"
        publish_all(TINIES, store)
        environ = {"BLITZ_CACHE_MODELS": str(CACHE_MODELS)}
        with started_service(store, environ=environ) as (url, process):
            wait_until_ready(url, process)
            return asyncio.run(_soak(url, process.pid, requests, seed))


async def _soak(url: str, pid: int, requests: int, seed: int) -> dict[str, float]:
    random, kinds = Random(seed), Counter[str]()

    def question() -> Question:
        chosen = mixed(TINIES, random)
        kinds[chosen.kind] += 1
        return chosen

    def has(answers: list[Answer], part: float) -> bool:
        return len(answers) >= requests * part

    memory: dict[str, float] = {}
    async with asking(url, question, CLIENTS) as answers:
        # The first tenth fills caches, arenas and pools.
        for moment, part in (("start", 0.1), ("middle", 0.5), ("end", 1.0)):
            await seen(lambda part=part: has(answers, part), 3600)  # type: ignore[misc]
            memory[f"memory at the {moment}, MiB"] = memory_mib(pid)
    metrics = await asyncio.to_thread(metrics_of, url)
    return {
        "requests": float(len(answers)),
        **{f"of them {kind}": float(count) for kind, count in sorted(kinds.items())},
        "wrong answers": float(sum(not answer.right for answer in answers)),
        "evictions": metrics["blitz_cache_evictions"],
        "models loaded at the end": metrics["blitz_cache_models"],
        **memory,
    }
