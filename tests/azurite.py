"""Starts a real Azurite blob service in memory, and makes containers in it."""

from __future__ import annotations

import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from tests.server import free_port

PROGRAM = Path(__file__).parent / "node_modules" / ".bin" / "azurite-blob"
ACCOUNT = "devstoreaccount1"
# Azurite's published key: the same on every machine, no secret.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class Azurite:
    port: int

    @property
    def connection_string(self) -> str:
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint=http://127.0.0.1:{self.port}/{ACCOUNT};"
        )

    def container(self) -> ContainerClient:
        """A new, empty container; close it. Its `url` is a model store's URL."""
        client = ContainerClient.from_connection_string(self.connection_string, f"c-{uuid.uuid4().hex}")
        client.create_container()
        return client


@contextmanager
def running_azurite(timeout_s: float = 30) -> Iterator[Azurite]:
    """Skips the test when node or the packages of tests/package.json are not installed."""
    if not PROGRAM.exists() or shutil.which("node") is None:
        pytest.skip("Azurite is not installed: run `npm ci` in tests/")
    port = free_port()
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    process = subprocess.Popen(
        [str(PROGRAM), *options, "--blobPort", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_it_answers(port, process, timeout_s)
        yield Azurite(port)
    finally:
        process.terminate()
        process.wait(10)


def _wait_until_it_answers(port: int, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"Azurite stopped with exit code {process.returncode}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2):
                return
        except urllib.error.HTTPError as error:
            error.close()  # any status is an answer
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise TimeoutError(f"Azurite did not answer in {timeout_s} s")
