"""Getting about by links, keys and addresses; and what the page computes, tried in a browser."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from tests.page.world import DESKTOP, PHONE, Visit, until

SECTIONS = {"models": "Models", "try": "Try it", "rerank": "Rerank", "bulk": "Bulk", "live": "Live"}


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_link_leads_to_each_section(visit: Visit, viewport: dict[str, int]) -> None:
    """By the keyboard too; the address and the title follow, and so does the way back."""
    page = visit(viewport=viewport)
    for name, title in SECTIONS.items():
        page.get_by_role("link", name=title, exact=True).focus()
        page.keyboard.press("Enter")
        page.get_by_role("heading", name=title, exact=True, level=2).wait_for()
        assert page.locator("nav [aria-current]").inner_text() == title
        assert page.title().startswith(title)
        assert page.url.endswith(f"#{name}")
        assert page.locator("main > section:visible").count() == 1
    page.go_back()
    page.get_by_role("heading", name="Bulk", level=2).wait_for()


def test_the_first_key_leads_past_the_links(visit: Visit) -> None:
    page = visit()
    page.get_by_role("article").first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    until(page, lambda: page.evaluate("document.activeElement.id") == "main")
    assert page.locator("#models").is_visible()


def test_the_map_shows_the_principal_components(visit: Visit) -> None:
    """As numpy's singular values have them, up to their signs."""
    random = np.random.default_rng(7)
    rows = random.standard_normal((9, 30)) * np.linspace(3, 0.2, 30)
    page = visit()
    found = page.evaluate(
        """async (rows) => {
            const { components } = await import('/page/vectors.js');
            return components(rows.map((row) => Float64Array.from(row)));
        }""",
        rows.tolist(),
    )
    centred = rows - rows.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    wanted = left[:, :2] * sizes[:2]
    points = np.array(found["points"])
    assert np.abs(np.abs(points) - np.abs(wanted)).max() < 1e-3
    assert np.allclose(found["shares"], sizes[:2] ** 2 / (sizes**2).sum(), atol=1e-6)


TABLE = [
    ["id", "text", "other"],
    ["a", 'said "no", twice', "x"],
    ["b", "two\nlines, and Gr\u00fc\u00dfe", ""],
    ["c", "", "no text"],
    ["d", "the last", "y"],
]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_delimited_rows_are_read_as_python_writes_them(
    visit: Visit, separator: str, ending: str
) -> None:
    written = io.StringIO()
    csv.writer(written, delimiter=separator, lineterminator=ending).writerows(TABLE)
    name = "rows.tsv" if separator == "\t" else "rows.csv"
    page = visit()
    what, made = page.evaluate(
        """async ([name, text]) => {
            const rows = await import('/page/rows.js');
            const what = rows.look(name, text);
            return [what, rows.write(text, what, what.columns[0], "m")];
        }""",
        [name, written.getvalue()],
    )
    assert what["columns"] == ["text", "id", "other"]
    lines = [json.loads(line) for line in made["parts"]]
    texts = {line["custom_id"]: line["body"]["input"] for line in lines}
    assert texts == {row[0]: row[1] for row in TABLE[1:] if row[1]}
    assert made["bad"] == [[3, "its text is empty"]]


def test_quantiles_are_prometheus(visit: Visit) -> None:
    """Of what came between two readings: 10 of up to 1 s, 10 of up to 2 s, counted by hand."""
    text = 'h_bucket{le="1"} %d\nh_bucket{le="2"} %d\nh_bucket{le="+Inf"} %d\n'
    page = visit()
    found = page.evaluate(
        """async ([before, after]) => {
            const { read, quantile } = await import('/page/prometheus.js');
            return [0.25, 0.5, 0.95, 1].map((share) => quantile(share, "h", read(before), read(after)));
        }""",
        [text % (5, 5, 5), text % (15, 25, 25)],
    )
    assert found == pytest.approx([0.5, 1.0, 1.9, 2.0])
