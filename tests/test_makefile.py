"""`make` for a newcomer: what it lists, what it says when something is missing, what it keeps.

Python and npm are stand-ins that write down what they are called with: nothing is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server import ROOT

TOOLS = ("make", "sh", "sed", "rm", "mkdir", "touch", "echo", "cat", "chmod", "cp", "printf")
TARGETS = (
    "help",
    "run",
    "test",
    "test-openvino",
    "test-cluster",
    "test-page",
    "check",
    "bench",
    "lock",
    "clean",
)
PYTHON = """#!/bin/sh
echo "$(basename "$(dirname "$0")")/$(basename "$0") $*" >> {log}
case "$*" in
  --version) echo Python {version};;
  *"sys.version_info"*) case "$*" in *"import pip"*) {has_pip};; *) {supported};; esac;;
  "-m venv .venv") mkdir -p .venv/bin && cp {whole} .venv/bin/python;;
  *venv*|*torch*|*pip*|*functions*|*model_build*) :;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile and what its rules look at, empty; tools alone on the PATH, no Python, no npm."""
    made = tmp_path / "checkout"
    for name in re.findall(r"[\w/]*(?:requirements[\w-]*\.txt|package(?:-lock)?\.json)", _makefile()):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).touch()
    (made / "Makefile").write_text(_makefile())
    (made / ".blitz/bulk/bulk-out").mkdir(parents=True)
    (made / ".blitz/bulk/bulk-out/mine.parquet").touch()
    (tmp_path / "bin").mkdir()
    for tool in (*TOOLS, "basename", "dirname"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or pytest.skip(f"{tool} is missing"))
    return made


def _makefile() -> str:
    return (ROOT / "Makefile").read_text("utf-8")


def _python(file: Path, log: Path, *, version: str = "3.12.1", has_pip: bool = True) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    supported = version.startswith(("3.11", "3.12"))
    whole = log.with_name("whole")
    if file != whole:
        _python(whole, log)
    text = PYTHON.format(
        log=log,
        version=version,
        has_pip=f"exit {not has_pip:d}",
        supported=f"exit {not supported:d}",
        whole=whole,
    )
    file.write_text(text)
    file.chmod(0o755)


def _make(checkout: Path, *arguments: str) -> tuple[int, str]:
    path = str(checkout.parent / "bin")
    finished = subprocess.run(
        [f"{path}/make", *arguments], cwd=checkout, env={"PATH": path}, capture_output=True, text=True
    )
    return finished.returncode, finished.stdout + finished.stderr


@pytest.mark.parametrize("arguments", [(), ("help",)])
def test_make_alone_lists_every_target(checkout: Path, arguments: tuple[str, ...]) -> None:
    """With a sentence each; it installs nothing."""
    code, said = _make(checkout, *arguments)
    assert code == 0
    assert tuple(re.findall(r"(?m)^make ([\w-]+) +\S", said)) == TARGETS
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("version", "given", "told"),
    [
        (None, (), "python3 is not there"),
        ("3.13.0", (), "python3 is Python 3.13.0"),
        ("3.10.4", (), "python3 is Python 3.10.4"),
        ("3.12.1", ("PYTHON=python9",), "python9 is not there"),
    ],
)
def test_a_python_that_cannot_serve_is_a_sentence(
    checkout: Path, version: str | None, given: tuple[str, ...], told: str
) -> None:
    """No traceback, and how to name another one."""
    if version:
        _python(checkout.parent / "bin" / "python3", checkout.parent / "log", version=version)
    code, said = _make(checkout, "run", *given)
    assert code != 0
    assert f"needs Python 3.11 or 3.12; {told}." in said
    assert "make PYTHON=" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("left", ["nothing", "no pip", "no python"])
def test_a_venv_that_is_not_whole_is_made_anew(checkout: Path, left: str) -> None:
    """An interrupted `python -m venv` leaves a Python without pip."""
    log = checkout.parent / "log"
    _python(checkout.parent / "bin" / "python3.12", log)
    if left != "nothing":
        (checkout / ".venv").mkdir()
        (checkout / ".venv/rest").touch()
    if left == "no pip":
        _python(checkout / ".venv/bin/python", log, has_pip=False)
    code, said = _make(checkout, "run", "PORT=7193")
    assert code == 0, said
    assert "bin/python3.12 -m venv .venv" in log.read_text()
    assert not (checkout / ".venv/rest").exists()
    assert re.search(r"(?m)^bin/python -m functions\.local .*--port 7193 ", log.read_text())


def test_a_whole_venv_is_kept(checkout: Path) -> None:
    """Gigabytes are not installed twice."""
    log = checkout.parent / "log"
    _python(checkout.parent / "bin" / "python3.12", log)
    _python(checkout / ".venv/bin/python", log)
    assert _make(checkout, "run")[0] == 0
    assert "-m venv" not in log.read_text()


@pytest.mark.parametrize("target", ["test", "bench"])
def test_missing_npm_is_said_before_anything_is_installed(checkout: Path, target: str) -> None:
    """And what to install."""
    log = checkout.parent / "log"
    _python(checkout.parent / "bin" / "python3.12", log)
    code, said = _make(checkout, target)
    assert code != 0
    assert "npm" in said
    assert "Node.js 22" in said
    assert "-m" not in (log.read_text() if log.exists() else "").replace("sys.version_info", "").split()


def test_clean_keeps_what_bulk_wrote(checkout: Path) -> None:
    """And says where it is."""
    for folder in (".venv", ".blitz/models", "tests/node_modules"):
        (checkout / folder).mkdir(parents=True)
    code, said = _make(checkout, "clean")
    assert code == 0
    assert (checkout / ".blitz/bulk/bulk-out/mine.parquet").exists()
    assert ".blitz/bulk" in said
    for folder in (".venv", ".blitz/models", "tests/node_modules"):
        assert not (checkout / folder).exists()
