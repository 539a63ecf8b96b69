"""Starts a real Azurite in memory, and makes containers in it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from tests.patience import PATIENCE_S
from tests.server import free_port, wait_until_answered

PROGRAMS = Path(__file__).parent / "node_modules" / ".bin"
ACCOUNT = "devstoreaccount1"
# Azurite's published key: the same on every machine, no secret.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class Azurite:
    """queue_port: 0 where there is no queue service."""

    port: int
    queue_port: int = 0

    @property
    def connection_string(self) -> str:
        services = {"Blob": self.port, "Queue": self.queue_port}
        endpoints = "".join(
            f"{name}Endpoint=http://127.0.0.1:{port}/{ACCOUNT};"
            for name, port in services.items()
            if port
        )
        return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};{endpoints}"

    def container(self) -> ContainerClient:
        """A new, empty container; close it. Its `url` is a model store's URL."""
        client = ContainerClient.from_connection_string(self.connection_string, f"c-{uuid.uuid4().hex}")
        client.create_container()
        return client


@contextmanager
def running_azurite(
    timeout_s: float = PATIENCE_S,
    port: int = 0,
    *,
    queues: bool = False,
    queue_port: int = 0,
    folder: Path | None = None,
    any_version: bool = True,
    tls: tuple[Path, Path] | None = None,
) -> Iterator[Azurite]:
    """queues: the queue service too, in the same process.

    folder: keeps what is stored, for one that is stopped and started again; None: in memory.

    any_version: take clients newer than itself, which Azurite as people start it does not.
    tls: certificate and key of HTTPS, with which it takes Entra's tokens; it checks their claims alone.
    Skips the test when node or the packages of tests/package.json are not installed.
    """
    program = PROGRAMS / ("azurite" if queues else "azurite-blob")
    if not program.exists() or shutil.which("node") is None:
        pytest.skip("Azurite is not installed: run `npm ci` in tests/")
    azurite = Azurite(port or free_port(), (queue_port or free_port()) if queues else 0)
    options = ["--disableTelemetry", "--silent"]
    options += ["--location", str(folder)] if folder else ["--inMemoryPersistence"]
    options += ["--blobPort", str(azurite.port)]
    if any_version:
        options.append("--skipApiVersionCheck")
    if tls:
        options += ["--oauth", "basic", "--cert", str(tls[0]), "--key", str(tls[1])]
    if queues:
        options += ["--queuePort", str(azurite.queue_port), "--tablePort", str(free_port())]
    process = subprocess.Popen(
        [str(program), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for service in filter(None, (azurite.port, azurite.queue_port)):
            if tls:
                _wait_until_open(service, process, timeout_s)
            else:
                wait_until_answered(f"http://127.0.0.1:{service}/", process, timeout_s, anything=True)
        yield azurite
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _wait_until_open(port: int, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Without a word to it: whether its certificate is trusted is the test's affair."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the process stopped with exit code {process.returncode}"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on {port} after {timeout_s} s")
