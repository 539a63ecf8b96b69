"""The end of a local service: soon, with exit code 0, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.patience import PATIENCE_S
from tests.questions import ask_once, embed_many
from tests.server import (
    ROOT,
    children_of,
    free_port,
    http_get,
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


STOPPING = "the service is stopping"
LONG = {"model": "endless", "inputs": ["w1 " * 300] * 300}
OPENAI = {"message": STOPPING, "type": "server_error", "param": None, "code": "unavailable"}
UNDER_WAY: dict[str, tuple[bytes, Any]] = {
    # A whole request whose work takes minutes, and requests of which half has come.
    "work": (json.dumps(LONG).encode(), {"error": STOPPING, "error_type": "Unhealthy"}),
    "TEI": (b'{"inputs": ', {"error": STOPPING, "error_type": "Unhealthy"}),
    "OpenAI": (b'{"input": ', {"error": OPENAI, "detail": STOPPING}),
    "Cohere": (b'{"texts": ', {"message": STOPPING, "detail": STOPPING, "error": STOPPING}),
    "a file": (b"--b", {"error": OPENAI}),
}
PATHS = {"OpenAI": "/v1/embeddings", "Cohere": "/v2/embed", "a file": "/v1/files"}


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP])
def test_what_takes_too_long_is_answered_503_at_the_end(number: signal.Signals, tmp_path: Path) -> None:
    """In each dialect's shape, whatever it was about; and no stack is in the log, of a caller that does
    not take its answer either."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, as under nohup, so all processes ignore it")
    store = f"file://{tmp_path / 'models'}"
    publish_all([Tiny("endless", dimensions=512, work=4000), Tiny("wide", dimensions=1024)], store)
    environ = {"BLITZ_STORAGE": f"file://{tmp_path / 'bulk'}", "BLITZ_WARM_MODELS": "endless,wide"}
    log = (tmp_path / "log").open("w+b")
    with ExitStack() as stack:
        stack.enter_context(log)
        url, process = stack.enter_context(started_service(store, environ=environ, stderr=log))
        wait_until_ready(url, process)
        asleep = stack.enter_context(_connection(url))
        texts = {"model": "wide", "inputs": ["w1"] * 2048}
        asleep.sendall(_post("/embed", json.dumps(texts).encode()))
        assert asleep.recv(12) == b"HTTP/1.1 200"  # of some 20 MB, more than sockets hold
        asking = {case: stack.enter_context(_connection(url)) for case in UNDER_WAY}
        for case, connection in asking.items():
            body = UNDER_WAY[case][0]
            connection.sendall(_post(PATHS.get(case, "/embed"), body, more=0 if case == "work" else 9))
        # Connections are taken and read in order: those before the second of these are under way.
        for _ in range(2):
            http_get(f"{url}/health")
        process.send_signal(number)
        for case, connection in asking.items():
            head, _, body = _read_all(connection).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503"), (case, head)
            assert b"\r\nretry-after: 1\r\n" in head
            assert json.loads(body) == UNDER_WAY[case][1]
        assert process.wait(PATIENCE_S) == 0
        log.seek(0)
        told = log.read().decode()
    assert "response aborted: the service is stopping" in told
    assert "File " not in told
    assert "Traceback" not in told


def _connection(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), PATIENCE_S)


def _read_all(connection: socket.socket) -> bytes:
    received = b""
    while block := connection.recv(4096):
        received += block
    return received


def _post(path: str, body: bytes, more: int = 0) -> bytes:
    """A request. more: bytes of its body that are still to come."""
    kind = "multipart/form-data; boundary=b" if path == "/v1/files" else "application/json"
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body) + more}\r\n\r\n".encode() + body


SIGNALLED_IN_A_FINALISER = """
import signal
from functions.local import __main__ as local

class Gone:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

make = local._app

def make_signalled(*given):
    made = make(*given)
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
