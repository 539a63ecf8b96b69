"""What Azure gets of this repository: the host's settings, and the files in the zip."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from functions.api.start_page import FOLDER
from shared import __version__

ROOT = Path(__file__).parents[1]
HOST_SCHEMA = ROOT.parent / "shared" / "data" / "schemas" / "host.json"
LEVELS = ("Trace", "Debug", "Information", "Warning", "Error", "Critical", "None")
SERVED = {"function_app.py", "host.json", "requirements.txt", "functions", "shared"}


def _host() -> Any:
    return json.loads((ROOT / "host.json").read_text("utf-8"))


def test_host_json_follows_microsofts_schema() -> None:
    """The host ignores what it does not know: a misspelt setting would pass for the default."""
    if not HOST_SCHEMA.exists():
        pytest.skip("Microsoft's schema of host.json is not beside the checkout")
    jsonschema: Any = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft7Validator(json.loads(HOST_SCHEMA.read_text("utf-8")))
    assert [error.message for error in validator.iter_errors(_host())] == []


def test_the_apps_own_every_path() -> None:
    """With a route prefix the router would answer below /api, and no client would find it."""
    assert _host()["extensions"]["http"]["routePrefix"] == ""


def test_the_host_sends_no_request_a_second_time() -> None:
    """Each is a span of ours. It sends what it alone may know of: what failed, and its own troubles."""
    assert not _sends("Host.Results", "Information")
    assert _sends("Host.Results", "Error")
    # Our log records, of which we send our own, and others', which may quote a text.
    assert not _sends("Function.http_app_func.User", "Critical")
    # "Executing", "Executed": two traces a request.
    assert not _sends("Function.http_app_func", "Information")
    assert _sends("Host.Startup", "Error")
    assert _sends("Host.Function.Console", "Warning")
    assert not _sends("Host.Aggregator", "Information")


def test_what_the_host_sends_is_bounded_but_for_failures() -> None:
    """A host that complains at every message must not use up the day's quota."""
    insights = _host()["logging"]["applicationInsights"]
    sampling = insights["samplingSettings"]
    assert sampling["isEnabled"] is True
    assert 0 < sampling["maxTelemetryItemsPerSecond"] <= 20
    assert set(sampling["excludedTypes"].split(";")) == {"Request", "Exception"}
    # The calls of queues and locks that it makes every few seconds, for ever.
    assert insights["enableDependencyTracking"] is False


def _sends(category: str, level: str) -> bool:
    """As azure-webjobs-sdk's LoggerRuleSelector has it: the longest beginning of the category counts.

    That one knows no wildcard, unlike .NET's own.
    """
    rules = dict(_host()["logging"]["logLevel"])
    least = rules.pop("default")
    matching = [name for name in rules if category.startswith(name)]
    if matching:
        least = rules[max(matching, key=len)]
    return LEVELS.index(level) >= LEVELS.index(least)


def test_the_zip_holds_what_is_served_and_no_secrets() -> None:
    """Tests, builders and local secrets stay at home. Names only: Core Tools reads no wildcards here."""
    ignored = (ROOT / ".funcignore").read_text("utf-8").split()
    assert not [name for name in ignored if set(name) & set("*?[!/")]
    assert SERVED.isdisjoint(ignored)
    assert {
        "tests",
        "examples",
        "model_build",
        "infra",
        ".venv",
        ".azure",
        "local.settings.json",
    } <= set(ignored)


def test_the_zip_holds_the_page() -> None:
    """An entry of .funcignore is left out wherever it stands, and what git ignores is in no checkout."""
    ignored = set((ROOT / ".funcignore").read_text("utf-8").split())
    listed = subprocess.run(["git", "ls-files", str(FOLDER)], cwd=ROOT, capture_output=True, text=True)
    packed = [Path(name) for name in listed.stdout.split() if ignored.isdisjoint(Path(name).parts)]
    assert {path.name for path in packed} == {path.name for path in FOLDER.iterdir()}


def test_the_version_stands_in_one_place() -> None:
    """pyproject.toml reads it there, and the changelog's newest release is that version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "shared.__version__"}
    releases = re.findall(
        r"(?m)^## (\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text()
    )
    assert releases[0] == __version__


def test_commits_are_checked_by_the_tools_of_the_lock() -> None:
    """pre-commit has no versions of its own, and does what `make check` does."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    assert re.findall(r"repo: (\S+)", hooks) == ["local"]
    recipe = (ROOT / "Makefile").read_text("utf-8").partition("\ncheck:")[2].partition("\n\n")[0]
    checks = re.findall(r"\$\(BIN\)/(.+)", recipe)
    assert checks
    for check in checks:
        command = " ".join(word for word in check.split() if word not in (".", "--check"))
        assert f"entry: .venv/bin/{command}" in hooks
