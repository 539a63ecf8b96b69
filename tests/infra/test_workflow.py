"""GitHub's workflow: what it runs, on which Pythons, with which rights."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.infra.bicep import ROOT

WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


@pytest.fixture(scope="module")
def workflow() -> Any:
    yaml: Any = pytest.importorskip("yaml")
    # YAML's older version, which the parser follows, reads the key `on` as a truth.
    found = yaml.safe_load(WORKFLOW.read_text("utf-8"))
    return {"on" if key is True else key: value for key, value in found.items()}


def test_it_follows_githubs_schema(tmp_path: Path) -> None:
    """The one that check-jsonschema brings along. A mistake would otherwise show after a push."""
    pytest.importorskip("check_jsonschema")
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOW.read_text("utf-8").replace("runs-on:", "runs_on:"), "utf-8")
    assert [_check(file) for file in (WORKFLOW, wrong)] == [0, 1]


def _check(file: Path) -> int:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    return subprocess.run([*command, file], capture_output=True).returncode


def test_it_may_only_read(workflow: Any) -> None:
    """A pull request runs code of whoever opened it: without a right to write, and without secrets."""
    assert workflow["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in workflow["on"]
    assert all("permissions" not in job for job in workflow["jobs"].values())
    assert "secrets." not in WORKFLOW.read_text("utf-8")


def test_actions_are_pinned_by_commit(workflow: Any) -> None:
    """A tag can be moved to other code. The version stands beside it, for people."""
    used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    for each in used:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", each)
        assert re.search(rf"{each} # v\d+\.\d+\.\d+\n", WORKFLOW.read_text("utf-8"))


def test_it_runs_what_contributors_run_on_every_python(workflow: Any) -> None:
    """The commands of .ci/run, on the Pythons of pyproject.toml, which are those that Azure has."""
    job = workflow["jobs"]["test"]
    commands = re.findall(r"(?m)^make .+", (ROOT / ".ci" / "run").read_text("utf-8"))
    assert commands == ["make check", "make test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == commands
    least, below = re.findall(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', _project())[0]
    assert job["strategy"]["matrix"]["python"] == [f"3.{each}" for each in range(int(least), int(below))]


def _project() -> str:
    return (ROOT / "pyproject.toml").read_text("utf-8")


def test_everything_locked_is_looked_up_each_day(workflow: Any) -> None:
    """Python's lock files and npm's, in a job that fails by itself and that only the schedule needs."""
    (schedule,) = workflow["on"]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* \*", schedule["cron"])
    assert "if" not in workflow["jobs"]["advisories"]
    commands = [step.get("run", "") for step in workflow["jobs"]["advisories"]["steps"]]
    (audit,) = (each for each in commands if "pip-audit" in each)
    # --strict: a package that it finds nothing about is no package that is known to be safe.
    assert {"--strict", "--require-hashes"} <= set(audit.split())
    files = subprocess.run(
        ["sh", "-c", audit.partition(" | ")[0]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {path for path in ROOT.rglob("requirements*.txt") if not _is_foreign(path)}
    assert {ROOT / file for file in files} == ours
    assert commands[-1].split()[:2] == ["npm", "audit"]


def _is_foreign(path: Path) -> bool:
    return bool({".venv", "node_modules", ".blitz"} & set(path.relative_to(ROOT).parts))
