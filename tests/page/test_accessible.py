"""For all: axe-core finds nothing in any filled section, on a phone and a desktop, light and dark."""

from __future__ import annotations

from typing import Any

import pytest

from tests.page.world import DESKTOP, MINILM, PHONE, TINY, Page, Visit, until
from tests.server import ROOT

AXE = ROOT / "tests" / "node_modules" / "axe-core" / "axe.min.js"


def _models(page: Page) -> None:
    until(page, lambda: page.locator("article.card").count() == 6)
    page.locator("summary").first.click()


def _try(page: Page) -> None:
    until(page, lambda: page.locator("#try-other option").count() > 2)
    page.locator("#try-other").select_option(TINY.name)
    # Their cosines are of every shade.
    page.locator("#try-texts").fill("\n".join("w1 " * n + "w2 " * (9 - n) for n in range(10)))
    page.get_by_role("button", name="Embed", exact=True).click()
    until(page, lambda: page.locator(".run").count() == 2 and page.locator(".token").count() > 2)


def _rerank(page: Page) -> None:
    until(page, lambda: page.locator("#rerank-cosine option").count() > 1)
    page.get_by_role("button", name="Rerank").click()
    until(page, lambda: page.locator("#rerank-result article").count() == 3)


def _bulk(page: Page) -> None:
    until(page, lambda: page.locator("#bulk-model option").count() > 1)
    page.locator("#bulk-model").select_option(MINILM)
    file = {"name": "a.csv", "mimeType": "text/csv", "buffer": b'text\na text\n" "\n'}
    page.locator("#bulk-file").set_input_files(file)
    until(page, lambda: page.get_by_role("button", name="Embed the file").is_enabled())
    page.get_by_role("button", name="Embed the file").click()
    until(page, lambda: "completed" in page.locator("article.job").first.inner_text())


def _live(page: Page) -> None:
    until(page, lambda: page.locator(".tile b").last.inner_text() != "\u2013")


FILL = {"models": _models, "try": _try, "rerank": _rerank, "bulk": _bulk, "live": _live}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("section", FILL)
def test_axe_finds_nothing(
    visit: Visit, section: str, viewport: dict[str, int], scheme: str, request: pytest.FixtureRequest
) -> None:
    """And nothing is wider than the window, so that nobody scrolls sideways to read."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed: npm ci in tests/")
    page = visit(section, viewport=viewport, color_scheme=scheme)
    FILL[section](page)
    page.evaluate(AXE.read_text("utf-8"))
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    found = page.evaluate("(options) => axe.run(document, options)", options)["violations"]
    assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found] == []
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0


def test_motion_stops_where_it_is_not_wanted(visit: Visit) -> None:
    page = visit(reduced_motion="reduce")
    page.locator(".pill").first.wait_for()
    page.evaluate("document.querySelector('.pill').className = 'pill loading'")
    motion = "getComputedStyle(document.querySelector('.pill'), '::before').animationName"
    assert page.evaluate(motion) == "none"
