"""The linters of tests/requirements.txt, which not every platform has. Knows no file of ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def lint(linter: str, file: Path) -> None:
    """Fails upon any remark on `file`, however slight. Skips where there is no `linter`."""
    beside = str(Path(sys.executable).parent)
    program = shutil.which(linter, path=os.pathsep.join((beside, os.environ["PATH"])))
    if program is None:
        pytest.skip(f"{linter} is neither beside python nor on PATH: no build for this platform")
    ran = subprocess.run([program, file], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
