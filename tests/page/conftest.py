"""The real local service and a real Chromium: what the tests of the page look at."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from shared.models.store import open_store_url
from tests.page.world import BROKEN, DESKTOP, LATE, MINILM, RANKER, SPARSE, TINY, Page, Visit
from tests.server import ROOT, running_service

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser without a window; skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright here: make test-page has it")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no Chromium is installed: none of {', '.join(BROWSERS)} is on the PATH")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2, a small model of each task that knows the words w0 to w399, one that fails."""
    folder = tmp_path_factory.mktemp("page") / "models"
    assemble = [sys.executable, "-m", "model_build.assemble", MINILM, "--target", "cpu-int8"]
    subprocess.run([*assemble, "--push", f"file://{folder}"], cwd=ROOT, check=True, capture_output=True)
    cache = folder.parent / "cache"
    models = open_store_url(f"file://{folder}", cache_dir=cache, cache_disk_bytes=10**9)
    for tiny in TINY, RANKER, SPARSE, LATE, BROKEN:
        tiny.publish(models)
    for graph in (folder / BROKEN.name).rglob("model.onnx"):
        graph.write_bytes(b"not a graph" + graph.read_bytes()[11:])
    return folder


@pytest.fixture(scope="session")
def service(store: Path) -> Iterator[str]:
    """functions.local with room for two models; its URL."""
    environ = {
        "BLITZ_CACHE_MODELS": "2",
        "BLITZ_WARM_MODELS": MINILM,
        "BLITZ_MODEL_ALIASES": "nick=tiny",
    }
    with running_service(f"file://{store}", environ=environ) as url:
        yield url


@pytest.fixture
def visit(chromium: Any, service: str) -> Iterator[Visit]:
    """Opens the page at a section; options are Playwright's of a context, and routes answer for the
    service. Whatever the browser complains of fails the test: an error of a script, something that the
    policy refuses, a request elsewhere."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def open_page(
        section: str = "",
        url: str = service,
        routes: Mapping[str, Callable[[Any], None]] = MappingProxyType({}),
        **options: Any,
    ) -> Page:
        context = chromium.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        for pattern, answer in routes.items():
            page.route(pattern, answer)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: _listen(message, complaints))
        page.on("request", lambda request: _check_host(request, url, complaints))
        page.goto(f"{url}/#{section}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def _listen(message: Any, complaints: list[str]) -> None:
    # Chromium says so of each answer that is no 2xx: 401 before a key, 503 while nothing is loaded.
    if message.type == "error" and not message.text.startswith("Failed to load resource"):
        complaints.append(message.text)


def _check_host(request: Any, url: str, complaints: list[str]) -> None:
    if not request.url.startswith((f"{url}/", "blob:", "data:")):
        complaints.append(f"asks for {request.url}")
