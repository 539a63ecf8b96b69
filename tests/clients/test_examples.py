"""examples/: each is short, runs as it stands, and prints what it says that it prints."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.server import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MAX_LINES = 60
CLIENTS = ROOT / ".venv" / "clients" / "bin" / "python"
APART = ("langchain_openai", "llama_index")
"""What is installed in the clients' own environment alone."""
FIGURE = re.compile(r"\d+\.\d{2}\b")
"""The last digit may be another on another processor."""
PRINTS = "\n# Prints:\n"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(
    path: Path,
    service_url: str,
    minilm_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Against one service, and its folder of bulk jobs."""
    text = path.read_text("utf-8")
    code, _, printed = text.partition(PRINTS)
    arguments = [str(path), service_url, str(minilm_store.parent / "bulk")]
    if any(f"from {name}" in code for name in APART):
        if "CI" not in os.environ and not CLIENTS.exists():
            pytest.skip("the clients are not installed: make .venv/clients/installed")
        environ = {**os.environ, "LANGSMITH_TRACING": "false"}
        command = [str(CLIENTS), "-I", *arguments]
        ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
        assert ran.returncode == 0, ran.stderr
        out = ran.stdout
    else:
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(path), run_name="__main__")
        out = capfd.readouterr().out
    said = [line.removeprefix("# ").rstrip() for line in printed.splitlines()]
    found = [line.rstrip() or "#" for line in out.splitlines()]
    assert [FIGURE.sub("", line) for line in found] == [FIGURE.sub("", line) for line in said]
    figures = [[float(each) for each in FIGURE.findall("\n".join(lines))] for lines in (found, said)]
    assert figures[0] == pytest.approx(figures[1], abs=0.011)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_needs(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) < MAX_LINES
    assert PRINTS in text
    assert "\npip install " in text


def test_the_examples_are_listed() -> None:
    """In the README beside them, each with a line."""
    listed = (ROOT / "examples" / "README.md").read_text("utf-8")
    assert [path.name for path in EXAMPLES if f"]({path.name})" not in listed] == []
