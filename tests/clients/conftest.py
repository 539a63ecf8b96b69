"""What the official clients talk to: the real service, and the router over a fake backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import cohere
import pytest

from tests.apps import router_app
from tests.fakes.backend import FakeBackend
from tests.server import running_service
from tests.sockets import serving


@pytest.fixture(scope="session")
def service_url(minilm_store: Path) -> Iterator[str]:
    """The real local service over all-MiniLM-L6-v2, as a process of its own."""
    with running_service(f"file://{minilm_store}") as url:
        yield url


@pytest.fixture(scope="session")
def cohere_v2(service_url: str) -> Iterator[cohere.ClientV2]:
    """Cohere's SDK, talking to the real service."""
    with cohere.ClientV2(api_key="any", base_url=service_url) as client:
        yield client


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[FakeBackend], str]]:
    """Starts a real HTTP server for the router over a fake backend; returns its URL."""
    with ExitStack() as running:
        yield lambda backend: f"http://127.0.0.1:{running.enter_context(serving(router_app(backend)))}"
