"""Fixtures that many tests share: a real model, built once per run by the real build command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def minilm_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store folder holding all-MiniLM-L6-v2, built and published as `make run` does."""
    store = tmp_path_factory.mktemp("models")
    command = [sys.executable, "-m", "model_build", "all-MiniLM-L6-v2", "--target", "cpu-int8"]
    subprocess.run([*command, "--push", f"file://{store}"], cwd=ROOT, check=True)
    return store


@pytest.fixture(scope="session")
def reranker_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store folder holding the small real cross-encoder as "reranker", built for the CPU."""
    source = ROOT.parent / "shared" / "data" / "reranker"
    if not source.is_dir():
        pytest.skip("the reranker's weights are not beside this checkout (../shared/data/reranker)")
    store = tmp_path_factory.mktemp("rerankers")
    command = [sys.executable, "-m", "model_build", str(source), "--target", "cpu-int8"]
    subprocess.run([*command, "--push", f"file://{store}"], cwd=ROOT, check=True)
    return store
