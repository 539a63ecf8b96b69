"""Fixtures that many tests share: real models, built once per run by the real command; spans."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from shared.context import trace
from shared.context.trace import Span

ROOT = Path(__file__).parents[1]

# Torch's threads spin until the next tiny tensor comes, and take the CPU from other test processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes, or making one, is no property of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes that are no short text are numbered: packed ones may hold the time, and pytest-xdist
    refuses to run when two workers name a test differently."""
    if isinstance(val, bytes) and not (len(val) <= 100 and val.isascii() and val.decode().isprintable()):
        return "bytes"
    return None


LONG = (
    "tests/clients/test_client_programs.py",  # has MiniLM built, while the others need none
    "tests/faults",
    "tests/model_build",
    "tests/infra",
    "tests/clients",
    "tests/functions/local",
    "tests/shared/bulk",
)
"""What takes long, the longest first: at the end each process has only short files left to take."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several items with one id pytest-xdist runs the first, and says nothing of the others."""
    ids = Counter(item.nodeid for item in items)
    if twice := [name for name, times in ids.items() if times > 1]:
        raise pytest.UsageError(f"several tests have one id: {', '.join(twice)}")
    items.sort(key=lambda item: [not item.nodeid.startswith(long) for long in LONG])


def pytest_collection_finish() -> None:
    """What was imported stays, and no collection need look at it again: of torch's modules each takes
    a third of a second, and every export of a model asks for one."""
    gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def told() -> Iterator[list[Span]]:
    """Every span that ends during the test, in the order of their ends."""
    spans: list[Span] = []
    stop = trace.listen(spans.append)
    yield spans
    stop()


@pytest.fixture(scope="session")
def minilm_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store folder holding all-MiniLM-L6-v2, built and published by torch's build."""
    return _built("all-MiniLM-L6-v2", tmp_path_factory)


@pytest.fixture(scope="session")
def reranker_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store folder holding the small real cross-encoder as "reranker", built for the CPU."""
    source = ROOT.parent / "shared" / "data" / "reranker"
    if not source.is_dir():
        pytest.skip("the reranker's weights are not beside this checkout (../shared/data/reranker)")
    return _built(str(source), tmp_path_factory)


def _built(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's store, built once for all of this run's processes and copied for each."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    built = base / f"built-{Path(model).name}"
    with FileLock(f"{built}.lock"):
        if not built.exists():
            command = [sys.executable, "-m", "model_build", model, "--target", "cpu-int8"]
            making = built.with_suffix(".making")
            subprocess.run([*command, "--push", f"file://{making}"], cwd=ROOT, check=True)
            making.rename(built)
    # In a folder of its own: the local service keeps its bulk storage beside the store.
    store = tmp_path_factory.mktemp("store") / "models"
    shutil.copytree(built, store)
    return store
