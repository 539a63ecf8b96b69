"""What Azure gets of this repository: the host's settings, and the files in the zip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
HOST_SCHEMA = ROOT.parent / "shared" / "data" / "schemas" / "host.json"
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


def test_the_zip_holds_what_is_served_and_no_secrets() -> None:
    """Tests, builders and local secrets stay at home. Names only: Core Tools reads no wildcards here."""
    ignored = (ROOT / ".funcignore").read_text("utf-8").split()
    assert not [name for name in ignored if set(name) & set("*?[!/")]
    assert SERVED.isdisjoint(ignored)
    assert {"tests", "model_build", "infra", ".venv", ".azure", "local.settings.json"} <= set(ignored)
