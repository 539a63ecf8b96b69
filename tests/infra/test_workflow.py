"""GitHub's workflows: what they run, on which Pythons, with which rights, in which order."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.infra.bicep import INFRA, ROOT

WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


FOLDER = WORKFLOW.parent
NAMES = sorted(path.name for path in FOLDER.glob("*.yml"))
every = pytest.mark.parametrize("name", NAMES)


def _read(name: str) -> Any:
    yaml: Any = pytest.importorskip("yaml")
    # YAML's older version, which the parser follows, reads the key `on` as a truth.
    found = yaml.safe_load((FOLDER / name).read_text("utf-8"))
    return {"on" if key is True else key: value for key, value in found.items()}


@pytest.fixture(scope="module")
def workflow() -> Any:
    return _read(WORKFLOW.name)


def test_they_follow_githubs_schema(tmp_path: Path) -> None:
    """The one that check-jsonschema brings along. A mistake would otherwise show after a push."""
    pytest.importorskip("check_jsonschema")
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOW.read_text("utf-8").replace("runs-on:", "runs_on:"), "utf-8")
    assert _check(*(FOLDER / name for name in NAMES)) == 0
    assert _check(wrong) == 1


def _check(*files: Path) -> int:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    return subprocess.run([*command, *files], capture_output=True).returncode


LOGS_IN = {"contents": "read", "id-token": "write"}
RIGHTS = {
    ("azure-dev.yml", "review"): {"contents": "read", "pull-requests": "write"},
    ("azure-dev.yml", "staging"): LOGS_IN,
    ("azure-dev.yml", "production"): LOGS_IN,
    ("deploy.yml", "deploy"): LOGS_IN,
}
"""Of the jobs that may do more than read."""


@every
def test_each_job_has_the_rights_that_it_needs(name: str) -> None:
    """A pull request runs code of whoever opened it: it logs in nowhere, and reaches no secret."""
    found = _read(name)
    assert found["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in found["on"]
    for job, what in found["jobs"].items():
        assert what.get("permissions") == RIGHTS.get((name, job)), job
    text = (FOLDER / name).read_text("utf-8")
    allowed = {"deploy.yml": {"ALERT_WEBHOOK", "API_KEY_HASHES", "SMOKE_KEY"}}
    assert set(re.findall(r"secrets\.(\w+)", text)) == allowed.get(name, set())
    # Hashes, a key of a caller, and the webhook; but none of Azure, which takes GitHub's word for who
    # deploys.
    assert not re.search(r"client-secret|AZURE_CREDENTIALS|creds:", text)


@every
def test_actions_are_pinned_by_commit(name: str) -> None:
    """A tag can be moved to other code. The version stands beside it, for people."""
    text = (FOLDER / name).read_text("utf-8")
    jobs = _read(name)["jobs"].values()
    used = [step["uses"] for job in jobs for step in job.get("steps", []) if "uses" in step]
    called = [job["uses"] for job in jobs if "uses" in job]
    assert used + called
    for each in used:
        assert re.fullmatch(r"(actions|azure|Azure)/[\w-]+@[0-9a-f]{40}", each)
        assert re.search(rf"{each} # v\d+\.\d+\.\d+\n", text)
    # Of this repository and this commit.
    assert all((ROOT / each).is_file() for each in called)


@every
def test_no_word_of_a_pull_request_is_run(name: str) -> None:
    """An expression in a script would be: a title that holds a command, for one."""
    for job in _read(name)["jobs"].values():
        assert not [step for step in job.get("steps", []) if "${{" in step.get("run", "")]


def test_production_follows_staging_and_staging_the_tests() -> None:
    """By the same steps, each in its own environment: GitHub asks that one's reviewers."""
    jobs = _read("azure-dev.yml")["jobs"]
    assert jobs["test"]["uses"] == "./.github/workflows/ci.yml"
    assert "workflow_call" in _read("ci.yml")["on"]
    for environment, before in (("staging", "test"), ("production", "staging")):
        job = jobs[environment]
        assert job["needs"] == before
        assert job["uses"] == "./.github/workflows/deploy.yml"
        assert job["with"] == {"environment": environment}
    # Where there is no subscription, and in a pull request, neither runs.
    assert "vars.AZURE_CLIENT_ID != ''" in jobs["staging"]["if"]
    assert "github.event_name != 'pull_request'" in jobs["staging"]["if"]
    called = _read("deploy.yml")["jobs"]["deploy"]
    assert called["environment"] == "${{ inputs.environment }}"
    steps = [step["run"] for step in called["steps"] if step.get("run", "").startswith(".ci/")]
    assert steps == [".ci/deploy provision", ".ci/deploy deploy", ".ci/deploy smoke"]


def test_every_variable_that_bicep_reads_is_handed_on() -> None:
    """But those that azd finds out. `azd pipeline config` sets them by the same names: azure.yaml."""
    read = r"readEnvironmentVariable\(\s*'(\w+)'"
    variables = set(re.findall(read, (INFRA / "main.bicepparam").read_text("utf-8")))
    azds = {"AZURE_PRINCIPAL_ID", "SERVICE_GPU_IMAGE_NAME", "SERVICE_CPU_CONTAINER_IMAGE_NAME"}
    login = {"AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_SUBSCRIPTION_ID"}
    env = _read("deploy.yml")["jobs"]["deploy"]["env"]
    assert set(env) == variables - azds | login
    for name, value in env.items():
        kind = "secrets" if name in ("ALERT_WEBHOOK", "API_KEY_HASHES") else "vars"
        assert value == f"${{{{ {kind}.{name} }}}}"


def test_a_pull_request_is_told_what_it_would_deploy() -> None:
    """Both sides' snapshots of every variant; a fork's, which may not write, finds it in the summary."""
    job = _read("azure-dev.yml")["jobs"]["review"]
    steps = job["steps"]
    assert [step["with"]["path"] for step in steps if "with" in step] == ["head", "base"]
    compare, comment = steps[2:]
    assert "bicep snapshot" in compare["run"]
    assert "GITHUB_STEP_SUMMARY" in compare["run"]
    assert "--edit-last --create-if-none" in comment["run"]
    assert comment["if"] == "github.event.pull_request.head.repo.full_name == github.repository"


def test_it_runs_what_contributors_run_on_every_python(workflow: Any) -> None:
    """The commands of .ci/run, on the Pythons of pyproject.toml, which are those that Azure has."""
    job = workflow["jobs"]["test"]
    commands = re.findall(r"(?m)^make .+", (ROOT / ".ci" / "run").read_text("utf-8"))
    assert commands == [
        "make check",
        "make test",
        *(f"make test-{each}" for each in ("openvino", "cluster", "page")),
    ]
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
