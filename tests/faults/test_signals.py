"""The end of a local service: soon, with exit code 0, and nothing left behind."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from random import Random

import pytest

from tests.patience import PATIENCE_S
from tests.questions import ask_once, embed_many
from tests.server import (
    ROOT,
    children_of,
    free_port,
    is_free,
    is_running,
    metrics_of,
    started_service,
    wait_until_answered,
    wait_until_ready,
)
from tests.tiny import Tiny, publish_all

SLOW = Tiny("slow", dimensions=128, work=400)
SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"file://{tmp_path_factory.mktemp('signals') / 'models'}"
    publish_all([SLOW], url)
    return url


@pytest.fixture(autouse=True)
def interrupts_are_heard() -> Iterator[None]:
    """A shell has what it runs in the background ignore SIGINT, and so do all processes below."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_service(store: str, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM; the port is free again."""
    port = free_port()
    with started_service(store, port=port) as (url, process):
        wait_until_ready(url, process)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        assert is_free(port)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_it_starts_ends_all_processes(store: str, number: signal.Signals) -> None:
    """--separate, when the CPU backend is up and the GPU's is not yet: none is left."""
    port = free_port(3)
    with started_service(store, "--separate", port=port) as (_, process):
        wait_until_answered(f"http://127.0.0.1:{port + 1}/health", process, PATIENCE_S, anything=False)
        children = children_of(process.pid)
        assert children
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        assert not any(is_running(child) for child in children)
        assert all(is_free(port + n) for n in range(3))


@pytest.mark.anyio
async def test_what_is_under_way_is_answered_before_the_end(store: str, random: Random) -> None:
    """A request that was accepted before the signal gets its right answer."""
    with started_service(store) as (url, process):
        await asyncio.to_thread(wait_until_ready, url, process)
        for texts in (8, 32, 128, 512):  # until it takes long enough to be seen under way
            before = (await asyncio.to_thread(metrics_of, url))["te_embed_count"]
            question = embed_many(SLOW, random, least_texts=texts, most_texts=texts)
            asking = asyncio.create_task(ask_once(url, question))
            while (await asyncio.to_thread(metrics_of, url))["te_embed_count"] == before:
                pass
            if not asking.done():
                break
        assert not asking.done()
        process.send_signal(signal.SIGTERM)
        assert (await asking).right
        assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0


SIGNALLED_IN_A_FINALISER = """
import signal
from functions import local

class Gone:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

make = local._app

def make_signalled(settings):
    made = make(settings)
    Gone()
    return made

local._app = make_signalled
local.typer.run(local.serve)
"""


def test_a_signal_where_exceptions_are_ignored_ends_the_start(store: str) -> None:
    """As in the finalisers that imports have: it must not be lost."""
    command = [sys.executable, "-c", SIGNALLED_IN_A_FINALISER, "--port", str(free_port())]
    ran = subprocess.run([*command, "--model-store", store], cwd=ROOT, timeout=PATIENCE_S)
    assert ran.returncode == 0
