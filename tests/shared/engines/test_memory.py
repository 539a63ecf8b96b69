"""How much memory there is: the container's limit where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.engines.memory import LEAST_BYTES, left_for_batches, usable_memory


@pytest.fixture(autouse=True)
def eight_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2_000_000}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("memory.max", "4000000000\n", 4_000_000_000),
        ("memory.max", "max\n", 8_192_000_000),
        ("memory/memory.limit_in_bytes", "4000000000\n", 4_000_000_000),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", 8_192_000_000),
        ("other", "1", 8_192_000_000),
    ],
)
def test_the_smaller_limit_counts(tmp_path: Path, file: str, content: str, expected: int) -> None:
    """A container's (cgroup v2 or v1) if there is one, else the machine's."""
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert usable_memory(tmp_path) == expected


def test_batches_get_what_models_and_the_process_leave() -> None:
    """Of 4 GB with 2.5 GB of models: 0.9. Where models may take all, still enough for short texts."""
    assert left_for_batches(2_500_000_000, 4_000_000_000) == 900_000_000
    assert left_for_batches(2_500_000_000, 2_000_000_000) == LEAST_BYTES
