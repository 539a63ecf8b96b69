"""The threat model names real tests, files and limits: none that was renamed is left standing there."""

from __future__ import annotations

import re

import pytest

from shared.settings import Settings
from tests.server import ROOT

DOCUMENTS = [ROOT / "docs" / "threat-model.md", ROOT / "SECURITY.md"]
MODEL = DOCUMENTS[0].read_text("utf-8")
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", MODEL)))
FILES = sorted(
    {path for each in DOCUMENTS for path in re.findall(r"`([\w/]+/[\w/]+\.py)`", each.read_text())}
)
LIMITS = sorted(set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", MODEL)))


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_a_test_that_is_named_exists(path: str, name: str) -> None:
    """By its whole name, in that very file."""
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", FILES)
def test_a_file_that_is_named_exists(path: str) -> None:
    """From the repository's root."""
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_that_is_named_is_a_setting_or_a_constant(limit: str) -> None:
    """Of a file that its own row names."""
    constant = re.compile(rf"^(\w+, )*{limit}\b", re.MULTILINE)
    for row in MODEL.splitlines():
        if f"`{limit}`" in row and not hasattr(Settings(), limit.lower()):
            files = [path for path in FILES if f"`{path}`" in row]
            assert any(constant.search((ROOT / path).read_text("utf-8")) for path in files)


def test_every_row_says_what_holds_and_what_shows_it() -> None:
    """Or that nothing does."""
    for row in re.findall(r"(?m)^\|(.*)\|(.*)\|(.*)\|$", MODEL.partition("\n## ")[2]):
        tried, held, shown = (cell.strip() for cell in row)
        if tried in ("Tries", "---"):
            continue
        assert held
        assert "`tests/" in shown or "Not held" in held, tried
