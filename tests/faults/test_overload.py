"""Ten times more than the service can do."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from random import Random
from statistics import median

import pytest

from tests.questions import asking, embed_many, flood, seen
from tests.server import memory_mib, memory_of, metrics_of, started_service, wait_until_ready
from tests.tiny import Tiny, publish_all

pytestmark = pytest.mark.anyio

REQUESTS = 2_000


async def test_overload_is_refused_at_once_and_costs_no_memory(tmp_path: Path, random: Random) -> None:
    """429 with Retry-After, sooner than an answer; what is accepted is right; then all is as before.

    Nothing here depends on the machine's speed: how many requests there are is given, and what is held
    at once is bounded by their number, not by how long each takes.
    """
    tiny, store = Tiny("slow", dimensions=256, work=80), f"file://{tmp_path / 'models'}"
    publish_all([tiny], store)
    question = partial(embed_many, tiny, random, least_texts=16, most_texts=16)
    with started_service(store, environ={"BLITZ_MAX_QUEUE_S": "0.3"}) as (url, process):
        await asyncio.to_thread(wait_until_ready, url, process)
        async with asking(url, question, clients=3) as answers:
            await seen(lambda: len(answers) >= 8)  # until everything is warm
            began, done = asyncio.get_running_loop().time(), len(answers)
            await seen(lambda: len(answers) >= done + 24)
            capacity_per_s = 24 / (asyncio.get_running_loop().time() - began)
        before_mib = memory_mib(process.pid)

        async with memory_of(process.pid) as peak_mib:
            answers = await flood(url, question, 10 * capacity_per_s, REQUESTS)

        accepted = [answer for answer in answers if answer.status == 200]
        refused = [answer for answer in answers if answer.status == 429]
        assert len(accepted) + len(refused) == len(answers)
        assert all(answer.right for answer in accepted)
        assert accepted
        assert len(refused) > len(answers) / 2
        assert all(answer.retry_after_s for answer in refused)
        assert median(a.seconds for a in refused) < median(a.seconds for a in accepted)
        assert peak_mib() < before_mib + 64
        assert (await asyncio.to_thread(metrics_of, url))["te_queue_size"] == 0
        async with asking(url, question, clients=1) as answers:
            await seen(lambda: len(answers) >= 5)
        assert all(answer.right for answer in answers)
