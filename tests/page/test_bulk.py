"""The section Bulk: a file is chosen or dropped, followed, and its vectors and bad rows are fetched."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.page.world import TINY, Page, Visit, until

TEXTS = [f"w{n} w{n + 1}" for n in range(40)]
FILES = {
    "lines.txt": "\n".join(TEXTS) + "\n\n",
    "table.csv": "id,other,text\n" + "".join(f"{n},x,{text}\n" for n, text in enumerate(TEXTS, 1)),
    "rows.jsonl": "".join(
        json.dumps({"id": n, "n": n, "text": t}) + "\n" for n, t in enumerate(TEXTS, 1)
    ),
}

_BATCH = {"id": "batch_1", "metadata": {"file": "seen.csv"}}


def _job(page: Page, name: str) -> Page:
    return page.locator("article.job", has=page.get_by_role("heading", name=name)).first


def _begin(page: Page, name: str) -> None:
    until(page, lambda: name in page.locator("#bulk-status").inner_text())
    if page.locator("#bulk-model").is_enabled():
        page.locator("#bulk-model").select_option(TINY.name)
    page.get_by_role("button", name="Embed the file").click()
    until(page, lambda: page.locator("article.job").count() > 0)


def _ended(page: Page, name: str) -> None:
    until(page, lambda: _job(page, name).locator(".pill").inner_text() in ("completed", "failed"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_becomes_vectors(visit: Visit, name: str, tmp_path: Path) -> None:
    """Chosen by the dialog, and every row is answered in the file that is downloaded."""
    page = visit("bulk")
    (tmp_path / name).write_text(FILES[name])
    until(page, lambda: page.locator("#bulk-model option").count() > 1)
    page.locator("#bulk-file").set_input_files(tmp_path / name)
    _begin(page, name)
    _ended(page, name)
    assert "40 of 40 rows" in _job(page, name).inner_text()
    with page.expect_download() as told:
        _job(page, name).get_by_role("button", name="Download the vectors").click()
    assert told.value.suggested_filename == f"{Path(name).stem}.vectors.jsonl"
    told.value.save_as(tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    rows = {int(line["custom_id"]): line["response"]["body"]["data"][0]["embedding"] for line in lines}
    got = np.array([rows[n] for n in range(1, 41)])
    assert np.abs(got - TINY.vectors(TEXTS)).max() < 1e-5


def test_rate_and_time_left_are_told(visit: Visit) -> None:
    """Of a job that does 250 of its 1000 rows between one look and the next."""
    seen = [""]
    done = 0

    def told(route: Any) -> None:
        nonlocal done
        if f"{done} of" in seen[-1] or not done:  # else the last look was not seen yet
            done += 250
        counts = {"total": 1000, "completed": done, "failed": 0}
        status = "in_progress" if done < 1000 else "completed"
        route.fulfill(json={**_BATCH, "status": status, "request_counts": counts})

    def listed(route: Any) -> None:
        counts = {"total": 0, "completed": 0, "failed": 0}
        route.fulfill(json={"data": [{**_BATCH, "status": "validating", "request_counts": counts}]})

    page = visit("bulk", routes={"**/v1/batches?*": listed, "**/v1/batches/batch_1": told})
    job = _job(page, "seen.csv")

    def has_ended() -> bool:
        seen.append(job.inner_text())
        return "completed" in seen[-1]

    until(page, has_ended)
    assert any("waiting to begin" in each for each in seen)
    assert not [each for each in seen if "250 of 1,000 rows," in each]  # no rate of one look
    for rows in (500, 750):
        found = re.findall(rf"{rows} of 1,000 rows, (\d+) rows/s, ([\d.]+) s left", "".join(seen))
        [rate] = {float(rate) for rate, _ in found}
        assert 1 <= max(float(left) for _, left in found) <= (1000 - rows) / (rate - 0.5) + 0.6
    assert job.locator("progress").get_attribute("max") == "1000"
    assert "rows/s" not in seen[-1]


def test_bad_rows_are_read_on_the_page(visit: Visit, tmp_path: Path) -> None:
    """Those that the page cannot send, and those that the service refuses in its own words."""
    lines = [
        *(
            {
                "custom_id": f"r{n}",
                "method": "POST",
                "url": "/v1/embeddings",
                "body": {"model": TINY.name, "input": text},
            }
            for n, text in enumerate(TEXTS[:3])
        ),
        {
            "custom_id": "bad",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": TINY.name, "input": ""},
        },
    ]
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = visit("bulk")
    page.locator("#bulk-file").set_input_files(tmp_path / "batch.jsonl")
    _begin(page, "batch.jsonl")
    _ended(page, "batch.jsonl")
    until(page, lambda: "1 bad row" in _job(page, "batch.jsonl").inner_text())
    assert "bad" in _job(page, "batch.jsonl").locator("tbody").inner_text()
    assert "empty" in _job(page, "batch.jsonl").locator("tbody").inner_text()
    with page.expect_download() as told:
        _job(page, "batch.jsonl").get_by_role("button", name="Download the bad rows").click()
    assert told.value.suggested_filename == "batch.errors.jsonl"
    (tmp_path / "rows.csv").write_text('text\nw1\n" "\nw2\n')
    page.locator("#bulk-file").set_input_files(tmp_path / "rows.csv")
    _begin(page, "rows.csv")
    until(page, lambda: "its text is empty" in _job(page, "rows.csv").inner_text())
    assert "row 2" in _job(page, "rows.csv").inner_text()


def test_a_file_is_dropped_and_its_job_is_found_again(visit: Visit) -> None:
    """The page may be closed meanwhile."""
    page = visit("bulk")
    until(page, lambda: page.locator("#bulk-model option").count() > 1)
    transfer = page.evaluate_handle(
        """(text) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([text], "dropped.txt"));
            return transfer;
        }""",
        FILES["lines.txt"],
    )
    page.locator("#bulk-drop").dispatch_event("dragover", {"dataTransfer": transfer})
    assert "over" in page.locator("#bulk-drop").get_attribute("class")
    page.locator("#bulk-drop").dispatch_event("drop", {"dataTransfer": transfer})
    _begin(page, "dropped.txt")
    _ended(page, "dropped.txt")
    again = visit("bulk")
    until(again, lambda: again.locator("article.job").count() > 0)
    _ended(again, "dropped.txt")
    assert _job(again, "dropped.txt").get_by_role("button", name="Download the vectors").is_visible()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", "PAR1", "reads text, CSV and JSONL"),
        ("numbers.jsonl", '{"n": 1}\n', "no field with a text"),
    ],
)
def test_what_it_does_not_read_is_said(
    visit: Visit, name: str, content: str, message: str, tmp_path: Path
) -> None:
    page = visit("bulk")
    (tmp_path / name).write_text(content)
    page.locator("#bulk-file").set_input_files(tmp_path / name)
    until(page, lambda: message in page.locator("#bulk-status").inner_text())
    assert page.get_by_role("button", name="Embed the file").is_disabled()
