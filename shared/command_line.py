"""How a user calls one of our commands from where this process runs. Does not know what they do."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def command_of(module: str) -> str:
    """`python -m module` with the Python that runs this: the packages are in no other.

    For example `.venv/bin/python -m functions.bulk`, or `python -m ...` where that is the same Python.
    """
    return f"{_python(Path(sys.executable or 'python'), Path.cwd())} -m {module}"


def _python(executable: Path, folder: Path) -> str:
    if executable.is_relative_to(folder):
        return shlex.quote(str(executable.relative_to(folder)))
    if shutil.which("python") == str(executable):
        return "python"
    return shlex.quote(str(executable))
