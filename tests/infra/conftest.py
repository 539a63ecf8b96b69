"""What the Bicep CLI compiles is compiled once for all of this run's processes."""

from __future__ import annotations

import os

import pytest

from tests.infra import bicep


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    bicep.keep_in((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bicep")
