from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.engines.cpus import usable_cpus


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("25000 100000", 1), ("150000 100000", 2)],
)
def test_a_v2_quota_bounds_the_threads(tmp_path: Path, cpu_max: str, expected: int) -> None:
    """A container with half the host's cores gets threads for its half."""
    (tmp_path / "cpu.max").write_text(cpu_max)
    assert usable_cpus(tmp_path) == expected


def test_a_v1_quota_is_read_where_there_is_no_v2(tmp_path: Path) -> None:
    """Older hosts keep the quota in two files."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert usable_cpus(tmp_path) == 3


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    """macOS and bare hosts have no quota."""
    assert usable_cpus(tmp_path) == 8
