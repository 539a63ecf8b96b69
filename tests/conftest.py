"""Fixtures that many tests share: real models, made once per run by the real commands; spans."""

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
    "tests/model_build/test_assemble.py",  # builds MiniLM, with torch
    "tests/clients/test_client_programs.py",
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
    """A model store folder holding all-MiniLM-L6-v2, assembled to the bytes that torch's build gives.

    tests/model_build/test_assemble.py builds it and compares.
    """
    return _made("model_build.assemble", "all-MiniLM-L6-v2", tmp_path_factory)


@pytest.fixture(scope="session")
def reranker_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store folder holding the small real cross-encoder as "reranker", built for the CPU."""
    source = ROOT.parent / "shared" / "data" / "reranker"
    if not source.is_dir():
        pytest.skip("the reranker's weights are not beside this checkout (../shared/data/reranker)")
    return _made("model_build", str(source), tmp_path_factory)


def _made(command: str, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's store, made once for all of this run's processes and copied for each."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    made = base / f"made-{Path(model).name}"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            making = made.with_suffix(".making")
            arguments = [model, "--target", "cpu-int8", "--push", f"file://{making}"]
            subprocess.run([sys.executable, "-m", command, *arguments], cwd=ROOT, check=True)
            making.rename(made)
    # In a folder of its own: the local service keeps its bulk storage beside the store.
    store = tmp_path_factory.mktemp("store") / "models"
    shutil.copytree(made, store)
    return store
