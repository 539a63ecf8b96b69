"""What a caller sends decides little of what the service holds."""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen

import pytest

from tests.server import memory_mib, started_service, wait_until_ready

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PEAK_MIB = 120
"""More than at rest. Of one text of 4.7 MB the body, the text and a copy of it are 15."""
KEPT_MIB = 64
"""More than at rest, a moment afterwards."""


@pytest.fixture
def service(minilm_store: Path) -> Iterator[tuple[str, Popen[bytes]]]:
    """With the model loaded."""
    with started_service(f"file://{minilm_store}") as (url, process):
        wait_until_ready(url, process)
        assert post(url, "/embed", {"inputs": "hello"}) == 200
        yield url, process


def post(url: str, path: str, body: object) -> int:
    """The answer's status."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def peak_mib(process: Popen[bytes]) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


@pytest.mark.parametrize(
    ("path", "body", "times", "at_once", "status"),
    [
        ("/embed", {"inputs": "word " * 940_000, "truncate": True}, 6, 1, 200),
        ("/embed", {"inputs": "!" * 4_700_000, "truncate": True}, 4, 4, 200),
        (
            "/embed",
            {"inputs": "word " * 940_000, "truncation_direction": "Left", "truncate": True},
            2,
            1,
            200,
        ),
        ("/embed", {"inputs": "word " * 940_000, "truncate": False}, 2, 2, 422),
        ("/embed", {"inputs": "\ufdfa" * 1_500_000, "truncate": True}, 2, 2, 422),
        ("/tokenize", {"inputs": "!" * 4_700_000}, 2, 2, 422),
        ("/rerank", {"query": "q", "texts": ["word " * 940_000], "truncate": True}, 2, 2, 200),
    ],
)
def test_a_huge_text_is_not_held_many_times(
    service: tuple[str, Popen[bytes]],
    path: str,
    body: dict[str, object],
    times: int,
    at_once: int,
    status: int,
) -> None:
    """Of which a model reads 256 tokens, one after the other and at once; nor is much kept of it."""
    url, process = service
    at_rest = memory_mib(process.pid)
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(lambda _: post(url, path, body), range(times)))
    assert answers == [status] * times
    assert peak_mib(process) - at_rest < PEAK_MIB
    deadline = time.monotonic() + 30
    while memory_mib(process.pid) - at_rest > KEPT_MIB and time.monotonic() < deadline:
        time.sleep(0.2)
    assert memory_mib(process.pid) - at_rest < KEPT_MIB
