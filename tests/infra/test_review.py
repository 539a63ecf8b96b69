"""infra/review.py: what a pull request would deploy differently."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.infra.bicep import INFRA, resources_of
from tests.infra.scripts import load


@pytest.fixture(scope="module")
def review() -> ModuleType:
    return load(INFRA / "review.py")


def _app(name: str, **settings: str) -> dict[str, Any]:
    pairs = [{"name": key, "value": value} for key, value in settings.items()]
    where = f"/subscriptions/s/resourceGroups/g/providers/Microsoft.Web/sites/{name}"
    return {"id": where, "properties": {"siteConfig": {"appSettings": pairs}, "httpsOnly": True}}


def _by_id(*resources: dict[str, Any]) -> dict[str, Any]:
    return {each["id"]: each for each in resources}


def test_a_report_names_what_is_made_removed_and_changed(review: ModuleType) -> None:
    """By variant; settings by their names, whatever their order."""
    base = {"a": _by_id(_app("one", X="1", Y="2"), _app("two")), "same": _by_id(_app("one"))}
    head = {"a": _by_id(_app("one", Y="2", X="3", Z="4"), _app("three")), "same": _by_id(_app("one"))}
    text = review.report(base, head)
    assert [line.strip() for line in text.splitlines() if line.strip().startswith("- ")] == [
        "- changed: `Microsoft.Web/sites/one`",
        '- `properties.siteConfig.appSettings.X.value`: `"1"` → `"3"`',
        '- `properties.siteConfig.appSettings.Z`: `nothing` → `{"value": "4"}`',
        "- made: `Microsoft.Web/sites/three`",
        "- **removed**: `Microsoft.Web/sites/two`",
    ]
    assert "<b>same</b>" not in text
    assert "Nothing, in any variant" in review.report(base, base)


def test_a_comment_is_never_too_long_for_github(review: ModuleType) -> None:
    """Of thousands of resources, of long values, and of a value that would end the code's quotes."""
    many = _by_id(*(_app(f"app-{number}", X="`" * 10_000) for number in range(3000)))
    assert 10_000 < len(review.report({}, {"a": many})) < 65_536
    text = review.report({"a": _by_id(_app("b"))}, {"a": _by_id(_app("b", X="`" * 10_000))})
    assert len(text) < 1000
    assert "``" not in text


def test_bicep_s_own_snapshots_are_read(review: ModuleType, tmp_path: Path) -> None:
    """A real one against itself with one resource changed."""
    before = resources_of("complete")
    after = copy.deepcopy(before)
    (account, *_) = (each for each in after if each["type"] == "Microsoft.Storage/storageAccounts")
    account["properties"]["allowSharedKeyAccess"] = True
    for name, resources in (("base", before), ("head", after)):
        (tmp_path / name).mkdir()
        text = json.dumps({"predictedResources": resources})
        (tmp_path / name / "complete.snapshot.json").write_text(text)
    found = [review.read_snapshots(tmp_path / name) for name in ("base", "head")]
    lines = review.report(*found).splitlines()
    assert "    - `properties.allowSharedKeyAccess`: `false` → `true`" in lines
    assert len([line for line in lines if line.startswith("- ")]) == 1
