"""The end of a local service: soon, with exit code 0, and nothing left behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.server import (
    children_of,
    free_port,
    is_free,
    is_running,
    started_service,
    wait_until_ready,
)
from tests.tiny import Tiny, publish_all

ENOUGH_S = 15.0
"""What it is asked to do within; then it counts as hanging."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"file://{tmp_path_factory.mktemp('models')}"
    publish_all([Tiny("a"), Tiny("slow", dimensions=512, work=2000)], url)
    return url


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("arguments", [(), ("--separate",)])
def test_a_signal_ends_everything(store: str, number: signal.Signals, arguments: tuple[str, ...]) -> None:
    """Ctrl-C and SIGTERM, one process and three: no process is left, and the ports are free."""
    port = free_port(3)
    with started_service(store, *arguments, port=port) as (url, process):
        wait_until_ready(url, process)
        children = children_of(process.pid)
        assert len(children) >= len(arguments)
        process.send_signal(number)
        assert process.wait(ENOUGH_S) == 0
        assert not any(is_running(child) for child in children)
        assert all(is_free(port + n) for n in range(3))


def test_a_signal_lets_requests_end(store: str) -> None:
    """What is under way when it comes is answered."""
    answers: list[int] = []
    with started_service(store) as (url, process):
        wait_until_ready(url, process)
        httpx.post(f"{url}/embed", json={"model": "slow", "inputs": "w1"}, timeout=60)

        def ask() -> None:
            body = {"model": "slow", "inputs": ["w1 " * 20] * 8}
            answers.append(httpx.post(f"{url}/embed", json=body, timeout=60).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        _until(lambda: "te_request_count" in httpx.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(ENOUGH_S) == 0
        asking.join(ENOUGH_S)
    assert answers == [200]
