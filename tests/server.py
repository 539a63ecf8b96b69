"""Starts the real local service as processes of its own, for tests and benchmarks, and looks at them."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

import httpx
from filelock import FileLock, Timeout

from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[1]

# httpx gives up after 5 s.
http_get = partial(httpx.get, timeout=PATIENCE_S)
http_post = partial(httpx.post, timeout=PATIENCE_S)

# Below those that systems give to connections (Linux from 32768 on), or a client could get one between
# our look at it and its server's start.
_PORTS = range(20_000, 32_000)
_claims: list[FileLock] = []


def free_port(together: int = 1) -> int:
    """The first of `together` ports in a row that nobody listens on.

    No other test process of this machine gets them, and none of them comes a second time: each is
    locked until this process ends.
    """
    while True:
        first = _PORTS[secrets.randbelow(len(_PORTS) - together)]
        if all(is_free(port) and _claim(port) for port in range(first, first + together)):
            return first


def _claim(port: int) -> bool:
    folder = Path(tempfile.gettempdir()) / f"blitz-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / str(port))
    with suppress(Timeout):
        lock.acquire(timeout=0)
        _claims.append(lock)
        return True
    return False


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe, suppress(OSError, OverflowError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


@contextmanager
def running_service(
    store_url: str,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    timeout_s: float = PATIENCE_S,
) -> Iterator[str]:
    """`python -m functions.local` over `store_url`, ready; yields its base URL.

    environ: variables beside this process's own, e.g. BLITZ_ROLE.
    """
    with started_service(store_url, *arguments, environ=environ) as (url, process):
        wait_until_ready(url, process, timeout_s)
        yield url


@contextmanager
def started_service(
    store_url: str,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    port: int = 0,
    files: int | None = None,
    stderr: IO[bytes] | None = None,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The same, yielded at once with its process. files: how many it may open, if there is a limit."""
    port = port or free_port()
    command = [sys.executable, "-m", "functions.local", "--port", str(port), "--model-store", store_url]
    if files is not None:
        command = ["/bin/sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command]
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env={**os.environ, **(environ or {})},
    )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def wait_until_ready(url: str, process: subprocess.Popen[bytes], timeout_s: float = PATIENCE_S) -> None:
    """Until /ready answers 200."""
    wait_until_answered(f"{url}/ready", process, timeout_s, anything=False)


def wait_until_answered(
    url: str, process: subprocess.Popen[bytes], timeout_s: float, *, anything: bool
) -> None:
    """Until GET `url` is 200, or `anything` at all. Fails if the process stops before."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the process stopped with exit code {process.returncode}"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if anything:
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.05)
    raise TimeoutError(f"{url} did not answer in {timeout_s} s")


def metrics_of(url: str) -> dict[str, float]:
    """/metrics by series, labels included: 'blitz_backend_requests{backend="gpu",outcome="ok"}'."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE_S) as response:
        lines = response.read().decode().splitlines()
    series = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in series}


def memory_mib(pid: int) -> float:
    """What a process holds in memory (RSS). Linux only."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


@asynccontextmanager
async def memory_of(pid: int) -> AsyncIterator[Callable[[], float]]:
    """Watches a process while the block runs; yields what gives the most that it held, in MiB."""
    most = memory_mib(pid)

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, memory_mib(pid))
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        yield lambda: most
    finally:
        watching.cancel()


def children_of(pid: int) -> dict[int, str]:
    """The running processes that `pid` started, with their command lines. Linux only."""
    children = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while we looked
            # "PID (NAME) STATE PARENT ...", and a name may hold spaces and brackets.
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                children[int(folder.name)] = command
    return children


def is_running(pid: int) -> bool:
    """Whether there is such a process, other than a zombie. Linux only."""
    with suppress(OSError):
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "Z"
    return False
