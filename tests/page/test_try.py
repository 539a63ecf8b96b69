"""The section Try it: what it shows of vectors is what the service answers, computed again by numpy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.page.world import MINILM, TINY, Page, Visit, facts, until
from tests.patience import PATIENCE_S
from tests.server import ROOT, http_post

LINES = [
    "A cat sleeps on the sofa.",
    "Kittens nap in the sun.",
    "The bank raised its rates.",
    "Loans get more expensive.",
    "It's 3 o'clock, \"sharp\" & done <b>",
]
TIMES = "\N{MULTIPLICATION SIGN}"
CLIENTS = ROOT / ".venv" / "clients" / "bin" / "python"


def _embed(page: Page, lines: list[str] = LINES) -> None:
    """By the keyboard alone."""
    until(page, lambda: page.locator("#try-model option").count() > 0)
    page.get_by_label("Texts, one a line").fill("\n".join(lines))
    page.keyboard.press("Control+Enter")
    until(page, lambda: f"{len(lines)} text" in page.locator("#try-status").inner_text())


def _vectors(service: str, model: str = MINILM, **more: Any) -> NDArray[np.float64]:
    body = {"model": model, "input": LINES, **more}
    answer = http_post(f"{service}/v1/embeddings", json=body).json()
    return np.array([each["embedding"] for each in answer["data"]])


def _cut(rows: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    shortened: NDArray[np.float64] = rows[:, :count]
    return np.asarray(shortened / np.linalg.norm(shortened, axis=1, keepdims=True))


def _ranked(table: NDArray[np.float64], line: int) -> list[int]:
    return [int(at) for at in np.argsort(-table[line], kind="stable") if at != line]


def _shown(ranks: Page) -> list[int]:
    """The lines of a ranking, counted from 0."""
    return [int(each) - 1 for each in ranks.locator(".count").all_inner_texts()]


def test_cosines_neighbours_and_facts_are_the_services(visit: Visit, service: str) -> None:
    page = visit("try")
    _embed(page)
    rows = _vectors(service)
    table = rows @ rows.T
    cells = page.locator(".heat tbody td").all_inner_texts()
    assert np.abs(np.array(cells, float).reshape(5, 5) - table).max() < 0.0051
    nearest = page.locator(".run .ranks")
    assert _shown(nearest) == _ranked(table, 0)
    scores = np.array(nearest.locator(".score").all_inner_texts(), float)
    assert np.abs(scores - table[0][_ranked(table, 0)]).max() < 0.00051
    answer = http_post(f"{service}/embed", json={"model": MINILM, "inputs": LINES})
    tokens, revision = (answer.headers[name] for name in ("x-compute-tokens", "x-model-revision"))
    told = facts(page.locator(".run .figures"))
    assert told.pop("Answered in").endswith("s\nseen from here")
    assert told == {
        "Tokens": f"{tokens}\n{int(tokens) / 5:.1f} a text",
        "Vectors": f"5 {TIMES} 384\nof length one",
        "Backend": f"CPU\nrevision {revision}",
    }
    text = page.locator(".run .legend").first.inner_text()
    for part in ("Tokenise", "Queue", "Inference", "Load, network"):
        assert part in text
    cut = http_post(f"{service}/tokenize", json={"model": MINILM, "inputs": LINES[0]}).json()[0]
    until(page, lambda: page.locator(".token").count() == len(cut))
    assert page.locator(".token").all_text_contents() == [each["text"] for each in cut]


def test_a_line_is_chosen_in_each_picture(visit: Visit) -> None:
    """In the list, in the table, on the map; by keys on the map, where the focus stays."""
    page = visit("try")
    _embed(page)
    line = page.get_by_label("Look at line")
    heading = page.locator(".run h4", has_text="Nearest to line")
    line.select_option("2")
    assert heading.inner_text() == "Nearest to line 3"
    page.locator(".heat tbody th button").nth(3).click()
    assert heading.inner_text() == "Nearest to line 4"
    page.locator(".map .dot", has_text="2").first.click()
    assert heading.inner_text() == "Nearest to line 2"
    page.keyboard.press("ArrowRight")
    assert heading.inner_text() == "Nearest to line 3"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert heading.inner_text() == "Nearest to line 5"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Line 5: ")
    assert page.locator(".map [aria-pressed=true]").count() == 1
    assert line.input_value() == "4"


@pytest.mark.parametrize("presses", [0, 5])
def test_the_slider_tells_what_rankings_lose(visit: Visit, service: str, presses: int) -> None:
    """From the fewest numbers on: shares of the same nearest, largest change."""
    page = visit("try")
    _embed(page)
    slider = page.get_by_label("Dimensions kept")
    slider.press("Home")
    for _ in range(presses):
        slider.press("ArrowRight")
    kept = 8 + 8 * presses
    assert page.locator("#matryoshka-at").inner_text() == f"{kept} of 384"
    rows = _vectors(service)
    table, less = rows @ rows.T, _cut(rows, kept) @ _cut(rows, kept).T
    both = [(_ranked(table, line), _ranked(less, line)) for line in range(len(LINES))]
    nearest = sum(one[0] == other[0] for one, other in both) / len(LINES)
    change = np.abs(table - less).max()
    cells = page.locator("#matryoshka-loss tbody td").all_inner_texts()
    assert cells == [
        f"{nearest * 100:.0f} %",
        "100 %",
        f"{change:.3f}",
    ]  # 4 of 4 others are always there
    before, after = (page.locator("#matryoshka-loss .ranks").nth(at) for at in (0, 1))
    assert (_shown(before), _shown(after)) == both[0]
    assert "not trained for shorter vectors" in page.locator("#matryoshka-note").inner_text()
    # The service shortens alike.
    short = _vectors(service, dimensions=kept)
    assert np.abs(short @ short.T - less).max() < 1e-5


def test_two_models_stand_side_by_side(visit: Visit) -> None:
    page = visit("try")
    until(page, lambda: page.locator("#try-other option").count() > 2)
    page.locator("#try-other").select_option(TINY.name)
    lines = ["w1 w2 w3", "w4 w5", "w1 w9", "w7 w8 w4"]
    _embed(page, lines)
    names = page.locator(".run > h3").all_inner_texts()
    assert names == [MINILM, TINY.name]
    left, right = (page.locator(".run").nth(at).bounding_box() for at in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    cells = page.locator(".run").nth(1).locator(".heat tbody td").all_inner_texts()
    rows = TINY.vectors(lines)
    assert np.abs(np.array(cells, float).reshape(4, 4) - rows @ rows.T).max() < 0.0051
    assert "agree on 100 % of the 3 nearest" in page.locator("#try-agree").inner_text()


def test_a_prompt_and_dimensions_are_sent(visit: Visit) -> None:
    """And only a model that has prompts offers them."""
    page = visit("try")
    until(page, lambda: page.locator("#try-model option").count() > 2)
    assert page.locator("#try-prompt").is_disabled()
    page.locator("#try-model").select_option(TINY.name)
    page.locator("#try-prompt").select_option("query")
    page.locator("#try-dimensions").fill("8")
    lines = ["w1 w2 w3", "w4 w5", "w1 w9"]
    _embed(page, lines)
    rows = TINY.vectors([TINY.prompts["query"] + line for line in lines], 8)
    cells = page.locator(".heat tbody td").all_inner_texts()
    assert np.abs(np.array(cells, float).reshape(3, 3) - rows @ rows.T).max() < 0.0051
    assert '"prompt_name":"query"' in page.locator("#snippet").inner_text()
    assert '"dimensions":8' in page.locator("#snippet").inner_text()


def test_what_is_wrong_is_said_in_the_services_words(visit: Visit) -> None:
    page = visit("try")
    until(page, lambda: page.locator("#try-model option").count() > 0)
    page.get_by_label("Texts, one a line").fill(" \n")
    page.get_by_role("button", name="Embed", exact=True).click()
    until(page, lambda: "at least one line" in page.locator("#try-status").inner_text())
    # Typing so many lines takes Chromium half a minute.
    page.evaluate("document.getElementById('try-texts').value = 'w1\\n'.repeat(2100)")
    page.get_by_role("button", name="Embed", exact=True).click()
    until(page, lambda: "2048" in page.locator("#try-status").inner_text())


def test_many_lines_are_drawn(visit: Visit) -> None:
    """The table shows the first of them and says so; one line alone has nothing beside it."""
    page = visit("try")
    _embed(page, [f"text number {n}" for n in range(60)])
    assert page.locator(".heat tbody tr").count() == 30
    assert "first 30 of 60" in page.locator(".heat").inner_text()
    assert page.locator(".dot").count() == 60
    _embed(page, ["alone"])
    assert "no other line" in page.locator(".run").inner_text()


@pytest.mark.parametrize("key", [None, "sesame"])
@pytest.mark.parametrize("kind", ["curl", "OpenAI", "LangChain", "JavaScript"])
def test_the_code_runs_and_is_the_same_request(
    visit: Visit, service: str, kind: str, key: str | None, tmp_path: Path
) -> None:
    """Quotes and signs of a text survive; a key is named, and never stands in it."""
    page = visit("try")
    if key:
        page.evaluate("async () => { (await import('/page/service.js')).useKey('sesame') }")
    until(page, lambda: page.locator("#try-model option").count() > 1)
    page.locator("#try-model").select_option(TINY.name)
    page.locator("#try-prompt").select_option("document")
    page.locator("#try-dimensions").fill("8")
    _embed(page)
    page.get_by_role("button", name=kind).click()
    code = page.locator("#snippet").inner_text()
    assert "sesame" not in code
    assert ("BLITZ_KEY" in code) == (key is not None)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    until(page, lambda: "Copied" in page.locator("#snippet-status").inner_text())
    assert page.evaluate("navigator.clipboard.readText()") == code
    program, name = {
        "curl": (shutil.which("bash"), "code.sh"),
        "OpenAI": (sys.executable, "code.py"),
        "LangChain": (CLIENTS if "CI" in os.environ or CLIENTS.exists() else None, "code.py"),
        "JavaScript": (shutil.which("node"), "code.mjs"),
    }[kind]
    if program is None:
        pytest.skip(f"what runs {kind} is not installed")
    (tmp_path / name).write_text(code)
    environ = {**os.environ, "BLITZ_KEY": "sesame", "LANGSMITH_TRACING": "false"}
    environ.pop("PYTHONPATH", None)
    ran = subprocess.run(
        [str(program), str(tmp_path / name)],
        capture_output=True,
        text=True,
        env=environ,
        timeout=PATIENCE_S,
    )
    assert ran.returncode == 0, ran.stderr
    if kind == "curl":
        rows = _vectors(service, TINY.name, dimensions=8, prompt_name="document")
        told = np.array([each["embedding"] for each in json.loads(ran.stdout)["data"]])
        assert np.abs(told - rows).max() < 1e-6
    else:
        assert ran.stdout.split() == ["5", "8"]
