"""The papers: links lead somewhere, files that are named exist, decision records have their form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import models as coverage
from docs import settings as reference
from model_build.locate import read_catalogue
from tests.server import ROOT


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _is_ours(path: Path) -> bool:
    """Not what was installed, cached, built or published into the checkout."""
    parts = path.relative_to(ROOT).parts
    hidden = any(part.startswith(".") and part != ".github" for part in parts)
    return not hidden and "node_modules" not in parts and parts[:3] != ("infra", "gpu", "models")


PAGES = sorted(path for path in ROOT.rglob("*.md") if _is_ours(path))
_PAST = {"CHANGELOG.md"}
"""Pages that may name what is gone."""
RECORDS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"(?ms)^```.*?^```$|^    .*?$")
_PATH = re.compile(
    r"`((?:\.ci|\.github|docs|functions|infra|model_build|shared|tests)/[\w./-]*|"
    r"(?:function_app|host|pyproject|azure|local\.settings\.sample)\.[a-z]+)`"
)


def _anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them: lower case, spaces as hyphens, no other signs."""
    titles = re.findall(r"(?m)^#{1,6} (.+)$", re.sub(r"(?ms)^```.*?^```$", "", page.read_text("utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative ones: the file exists, and so does the heading behind #."""
    for link in _LINK.findall(_FENCED.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT.resolve()), link
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if _name(page) not in _PAST], ids=_name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths from the root, in backticks. NAME stands for any."""
    for path in _PATH.findall(page.read_text("utf-8")):
        assert "NAME" in path or (ROOT / path).exists(), path


def test_pages_that_are_named_exist() -> None:
    """In docstrings, comments and infrastructure, as docs/NAME."""
    kinds = {".py", ".bicep", ".bicepparam", ".toml", ".yml", ".yaml", ".sh", ".ps1"}
    for path in ROOT.rglob("*"):
        if path.suffix in kinds and _is_ours(path) and path != Path(__file__):
            for page in re.findall(r"(?<![\w./-])docs/[\w/-]+(?:\.md|/)", path.read_text("utf-8")):
                assert (ROOT / page).exists(), f"{_name(path)} names {page}"


def test_every_page_is_in_the_index() -> None:
    """docs/README.md leads to all pages, decisions/README.md and measurements/README.md to theirs."""
    for index in (ROOT / "docs" / name / "README.md" for name in ("", "decisions", "measurements")):
        links = set(_LINK.findall(index.read_text("utf-8")))
        pages = {page.name for page in index.parent.glob("*.md")} - {"README.md"}
        assert {link for link in links if "/" not in link and "#" not in link} == pages


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem[:3])
def test_a_decision_has_its_form(record: Path) -> None:
    """Status, date, context, decision, consequences, in under 40 lines."""
    text = record.read_text("utf-8")
    number = record.stem[:3]
    status = r"(accepted|rejected|superseded by \d{3})"
    head = rf"# {number}: .+\n\n- Status: {status}\n- Date: \d{{4}}-\d\d-\d\d\n"
    assert re.match(head, text)
    assert re.findall(r"(?m)^## (.+)$", text) == ["Context", "Decision", "Consequences"]
    assert len(text.splitlines()) < 40
    assert f"[{number}]({record.name})" in (record.parent / "README.md").read_text("utf-8")


def test_a_number_is_one_decision() -> None:
    """For good: others refer to it."""
    numbers = [record.stem[:3] for record in RECORDS]
    assert numbers
    assert sorted(set(numbers)) == numbers


def test_the_reference_of_settings_is_up_to_date() -> None:
    """`python -m docs.settings` writes it."""
    assert reference.PAGE.read_text("utf-8") == reference.render()


def test_the_table_of_models_is_up_to_date() -> None:
    """`python -m docs.models` writes it."""
    assert coverage.PAGE.read_text("utf-8") == coverage.render()


def test_the_table_of_models_is_whole() -> None:
    """Every architecture has models, what is not built has a reason, and names are pinned to theirs."""
    table, pinned = coverage.read_coverage(), read_catalogue()
    assert {model.architecture for model in table.models.values()} == set(table.architecture)
    assert len(table.models) >= 40
    named = {model.name: hub for hub, model in table.models.items() if model.name}
    for name, entry in pinned.items():
        assert named.pop(name).rpartition("/")[2] == name
        if entry.hub:
            assert re.fullmatch("[0-9a-f]{40}", entry.revision)
            assert entry.hub in table.models
    assert named == {}
    for hub, model in table.models.items():
        shared = table.architecture[model.architecture]
        built = shared.built if model.built is None else model.built
        on_cpu = any(target.startswith("cpu") for target in built)
        assert on_cpu != bool(model.reason or shared.reason), hub
        assert bool(built) != ((model.fidelity or shared.fidelity) == "none"), hub
        assert bool(model.figures) == (model.fidelity == "real"), hub


def test_every_claim_about_azure_says_how_far_it_was_checked() -> None:
    """In one of four words, which the page explains; nobody has had a subscription."""
    page = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    _, table = page.split("| claim | strongest check |\n| --- | --- |\n")
    rows = [row for row in table.splitlines() if row.startswith("| ")]
    assert len(rows) > 20
    for row in rows:
        assert re.match(r"\| .+ \| (compiled|simulated|run here|nobody)\b", row), row
    # Nothing of the page stands behind the table, where it would have no such word.
    assert table.strip().splitlines() == rows
