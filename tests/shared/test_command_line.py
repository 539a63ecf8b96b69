"""What a user has to type, as it depends on where Python lies and where he is."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from shared.command_line import command_of
from tests.server import ROOT

PRINT = "from shared.command_line import command_of; print(command_of('functions.keys'))"


@pytest.mark.parametrize(
    ("folder", "path", "printed"),
    [
        ("{here}", "", ".venv/bin/python -m functions.keys"),
        ("{here}/other", "{here}/.venv/bin", "python -m functions.keys"),
        ("{here}/other", "", "'{here}/.venv/bin/python' -m functions.keys"),
    ],
    ids=["below the folder", "on the path", "elsewhere"],
)
def test_the_command_names_the_python_that_runs(
    tmp_path: Path, folder: str, path: str, printed: str
) -> None:
    """Another one has none of the packages."""
    here = tmp_path / "with a space"
    venv.create(here / ".venv", symlinks=True)
    (here / "other").mkdir()
    finished = subprocess.run(
        [here / ".venv/bin/python", "-c", PRINT],
        cwd=folder.format(here=here),
        env={"PYTHONPATH": str(ROOT), "PATH": path.format(here=here)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.strip() == printed.format(here=here)


def test_the_command_works_as_it_is_printed() -> None:
    """Also where this suite runs."""
    command = shlex.split(command_of("functions.keys"))
    finished = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert sys.executable.endswith(command[0].rpartition("/")[2])
