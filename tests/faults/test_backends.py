"""Backends that die, stay silent, or are not there yet: each request has one answer, right or honest."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from functools import partial
from pathlib import Path
from random import Random

import pytest

from shared.backends.http import WAKE_S
from tests.faults.network import gate, silence
from tests.patience import PATIENCE_S
from tests.questions import ask_once, asking, embed_many, embed_one, seen
from tests.server import (
    children_of,
    free_port,
    is_running,
    metrics_of,
    running_service,
    started_service,
    wait_until_answered,
    wait_until_ready,
)
from tests.tiny import Tiny, publish_all

pytestmark = pytest.mark.anyio

COLD_S = 25.0
"""A GPU app takes 20 to 30 s to scale from zero; this is longer than the router waits to connect."""
OTHER = {"BLITZ_ROLE": "cpu"}
"""A backend in the GPU's place: the wire is the same, and it starts without torch."""


async def test_a_killed_backend_loses_no_request(tmp_path: Path, random: Random) -> None:
    """kill -9 under load: 502 and 503 while it is away, never a wrong vector; then all is as before.

    And the end leaves no process.
    """
    tiny, store = Tiny("slow", dimensions=128, work=300), f"file://{tmp_path / 'models'}"
    publish_all([tiny], store)
    port = free_port(3)
    with started_service(store, "--separate", port=port) as (url, process):
        await asyncio.to_thread(wait_until_ready, url, process)
        (backend,) = (
            pid for pid, command in children_of(process.pid).items() if f"--port {port + 1}" in command
        )
        async with asking(url, partial(embed_one, tiny, random), clients=6) as answers:
            await seen(lambda: len(answers) >= 20)
            assert all(answer.right for answer in answers)
            os.kill(backend, signal.SIGKILL)
            await seen(lambda: any(answer.status != 200 for answer in answers))
            away = len(answers)
            await seen(lambda: sum(answer.right for answer in answers[away:]) >= 20)
            back = len(answers)
            await seen(lambda: len(answers) >= back + 20)
        assert {answer.status for answer in answers} <= {200, 502, 503}
        assert all(answer.right for answer in answers if answer.status == 200)
        assert all(answer.right for answer in answers[back:])
        children = children_of(process.pid)
        assert len(children) >= 2
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0
        assert not any(is_running(child) for child in children)


async def test_a_backend_that_never_answers_is_given_up(tmp_path: Path, random: Random) -> None:
    """504 when time is up; after some of them 503 at once, without asking it again."""
    tiny, store = Tiny("a"), f"file://{tmp_path / 'models'}"
    publish_all([tiny], store)
    async with silence() as nobody:
        environ = {"BLITZ_CPU_BACKEND_URL": nobody, "BLITZ_REQUEST_TIMEOUT_S": "1.5"}
        with started_service(store, environ=environ) as (url, process):
            await asyncio.to_thread(
                wait_until_answered, f"{url}/health", process, PATIENCE_S, anything=False
            )
            waiting = [ask_once(url, embed_one(tiny, random)) for _ in range(5)]
            answers = await asyncio.gather(*waiting)
            assert [answer.status for answer in answers] == [504] * 5
            # Further ones are 504 too where this machine took longer than a backend is left alone.
            for _ in range(10):
                calls = await asyncio.to_thread(_calls, url, "cpu")
                refused = await ask_once(url, embed_one(tiny, random))
                if refused.status == 503:
                    break
                assert refused.status == 504
            assert refused.status == 503
            assert refused.retry_after_s
            assert await asyncio.to_thread(_calls, url, "cpu") == calls


async def test_another_backend_answers_for_one_that_does_not(tmp_path: Path, random: Random) -> None:
    """The first request takes half of its time until the other is asked; later ones go there at once."""
    tiny, store = Tiny("a"), f"file://{tmp_path / 'models'}"
    publish_all([tiny], store, "cpu-fp32", "gpu-fp16")
    async with silence() as nobody:
        with running_service(store, environ=OTHER) as other:
            environ = {
                "BLITZ_CPU_BACKEND_URL": nobody,
                "BLITZ_GPU_BACKEND_URL": other,
                "BLITZ_REQUEST_TIMEOUT_S": "10",
            }
            with started_service(store, environ=environ) as (url, process):
                await asyncio.to_thread(
                    wait_until_answered, f"{url}/health", process, PATIENCE_S, anything=False
                )
                waiting = [ask_once(url, embed_one(tiny, random)) for _ in range(5)]
                assert all(answer.right for answer in await asyncio.gather(*waiting))
                tried = await asyncio.to_thread(_calls, url, "cpu")
                assert (await ask_once(url, embed_one(tiny, random))).right
                assert await asyncio.to_thread(_calls, url, "cpu") == tried
                assert await asyncio.to_thread(_calls, url, "gpu", "ok") == 6


async def test_a_request_waits_for_a_cold_gpu(tmp_path: Path, random: Random) -> None:
    """With the fixed rule: ten texts for an app that scales from zero; meanwhile five are answered."""
    tiny, store = Tiny("a"), f"file://{tmp_path / 'models'}"
    publish_all([tiny], store, "cpu-fp32", "gpu-fp16")
    up = asyncio.Event()
    with running_service(store, environ=OTHER) as other:
        async with gate(int(other.rpartition(":")[2]), up) as cold:
            with running_service(store, environ={"BLITZ_GPU_BACKEND_URL": cold}) as url:
                many = embed_many(tiny, random, least_texts=10)
                waiting = asyncio.create_task(ask_once(url, many))
                assert (await ask_once(url, embed_many(tiny, random, most_texts=5))).right
                await asyncio.sleep(COLD_S)
                assert not waiting.done()
                up.set()
                assert (await waiting).right
                assert await asyncio.to_thread(_calls, url, "gpu", "ok") == 1


async def test_the_cpu_covers_for_a_gpu_that_starts(tmp_path: Path, random: Random) -> None:
    """With the adaptive rule: nobody waits, the GPU is woken once, and is used as soon as it is up.

    Once for as long as one wake tries, that is.
    """
    tiny, store = Tiny("large", ballast_bytes=100_000_000), f"file://{tmp_path / 'models'}"
    publish_all([tiny], store, "cpu-fp32", "gpu-fp16")
    port = free_port()
    environ = {"BLITZ_ROUTING": "adaptive", "BLITZ_GPU_BACKEND_URL": f"http://127.0.0.1:{port}"}

    async def ask_much() -> bool:
        question = embed_many(tiny, random, least_texts=64, most_texts=64, most_words=300)
        return (await ask_once(url, question)).right

    async def check_wakes() -> None:
        wakes = (await asyncio.to_thread(metrics_of, url))["blitz_gpu_wakes"]
        assert 1 <= wakes <= 1 + (time.monotonic() - began) // WAKE_S

    with running_service(store, environ=environ) as url:
        began = time.monotonic()
        for _ in range(3):
            assert await ask_much()
        await check_wakes()
        assert await asyncio.to_thread(_calls, url, "cpu", "ok") == 3
        assert await asyncio.to_thread(_calls, url, "gpu") == 0
        with started_service(store, environ=OTHER, port=port) as (other, process):
            await asyncio.to_thread(wait_until_ready, other, process)
            async with asyncio.timeout(PATIENCE_S):
                while not await asyncio.to_thread(_calls, url, "gpu", "ok"):
                    assert await ask_much()
        await check_wakes()


def _calls(url: str, device: str, outcome: str = "") -> float:
    """How often the router has called a backend, with any outcome or that one."""
    return sum(
        count
        for series, count in metrics_of(url).items()
        if series.startswith(f'blitz_backend_requests{{backend="{device}",outcome="{outcome}')
    )
