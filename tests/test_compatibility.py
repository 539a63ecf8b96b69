"""docs/compatibility.md names real tests and the versions installed; every client has a test."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import pytest

from tests.server import ROOT

TEXT = (ROOT / "docs" / "compatibility.md").read_text("utf-8")
CLIENTS = re.findall(
    r"(?m)^\|(.*)\|(.*)\|(.*)\|(.*)\|$", TEXT.partition("## Clients")[2].partition("\n## ")[0]
)[2:]
PYTHON_LOCK = (ROOT / "tests" / "clients" / "requirements.txt").read_text("utf-8")
NPM_LOCK = json.loads((ROOT / "tests" / "package-lock.json").read_text("utf-8"))
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
RUN = sorted({client.split(",")[0].strip() for client, shown, *_ in CLIENTS if shown.strip() == "Run"})


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_a_test_that_is_named_exists(path: str, name: str) -> None:
    """By its whole name, in that very file."""
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("client", RUN)
def test_a_client_that_is_run_has_the_version_that_is_told(client: str) -> None:
    """An upgrade of the lock is an upgrade of the table."""
    *registry, name, told = client.split()
    assert told in (_of_npm(name) if registry == ["npm"] else _of_pypi(name))


def _of_npm(name: str) -> set[str]:
    return {NPM_LOCK["packages"][f"node_modules/{name}"]["version"]}


def _of_pypi(name: str) -> set[str]:
    """Beside the service, and in the clients' own environment."""
    found = set(re.findall(rf"(?m)^{re.escape(name)}==(\S+)", PYTHON_LOCK))
    with suppress(PackageNotFoundError):
        found.add(version(name))
    return found


def test_every_client_has_a_test() -> None:
    """And says how it was shown."""
    assert CLIENTS
    for client, shown, _, test in CLIENTS:
        assert shown.strip() in ("Run", "Recorded", "Shape"), client
        assert "`tests/" in test, client
