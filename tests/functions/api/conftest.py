"""Fixtures of the public API's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.settings import Settings
from shared.storage.blobs import Storage
from shared.storage.connect import open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(Settings(storage=f"file://{tmp_path}"))
