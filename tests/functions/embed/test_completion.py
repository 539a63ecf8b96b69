"""Completion of the command line, by the shells themselves: their scripts ask no Python at a Tab."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from functions.embed.__main__ import app
from functions.embed.completion import script_for
from tests.patience import PATIENCE_S
from tests.server import ROOT


def _ran(shell: str, arguments: list[str], tmp_path: Path) -> str:
    program = shutil.which(shell) or pytest.skip(f"there is no {shell}")
    environ = {"HOME": str(tmp_path), "TERM": "dumb", "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(
        [program, *arguments], capture_output=True, text=True, env=environ, timeout=PATIENCE_S
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _script(shell: str, tmp_path: Path) -> Path:
    result = CliRunner().invoke(app, ["--completion", shell])
    assert result.exit_code == 0, result.stderr
    path = tmp_path / f"completion.{shell}"
    path.write_text(result.stdout)
    return path


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["--f"], ["--file", "--field", "--format"]),
        (["a", "--format", ""], ["jsonl", "npy", "table"]),
        (["--format", "t"], ["table"]),
        (["--mod"], ["--model", "--model-store"]),
        (["--h"], ["--help"]),
        (["zzz"], []),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_options_and_choices_are_completed(
    shell: str, words: list[str], completed: list[str], tmp_path: Path
) -> None:
    """In bash by the function that Tab calls; in fish by its own `complete`, with what each is for."""
    script = _script(shell, tmp_path)
    line = " ".join(f"'{word}'" for word in ["blitz-embed", *words])
    if shell == "bash":
        asked = f'COMP_WORDS=({line}); COMP_CWORD={len(words)}; _blitz_embed; echo "${{COMPREPLY[@]}}"'
        found = _ran(shell, ["-c", f"source {script}\n{asked}"], tmp_path).split()
    else:
        asked = f'complete --do-complete "blitz-embed {" ".join(words)}"'
        told = _ran(shell, ["--no-config", "-c", f"source {script}; {asked}"], tmp_path)
        found = [each.partition("\t")[0] for each in told.splitlines()]
    assert sorted(found) == sorted(completed)


def test_a_tab_completes_in_zsh(tmp_path: Path) -> None:
    """In an interactive one on a terminal of zsh's own: it completes nowhere else."""
    shown = {"--fo": "--format", "--format t": "--format table", "--he": "--help"}
    keys = f"""
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell 'source {_script("zsh", tmp_path)}; print loaded-$((1))'
        zpty -r -m shell told '*loaded-1*'
    """
    for typed, completed in shown.items():
        keys += f"""
            zpty -w -n shell $'blitz-embed {typed}\\t'
            zpty -r -m shell told '*{completed}*'
            print -r -- "$told"
            zpty -w -n shell $'\\C-u'
        """
    told = _ran("zsh", ["-f", "-c", keys], tmp_path)
    assert [each for each in shown.values() if f"blitz-embed {each}" not in told] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_command_that_is_completed_is_there(shell: str, tmp_path: Path) -> None:
    """Wherever the shell is, with the Python that has the packages, whatever their folders' names."""
    python = tmp_path / "it's a $python"
    python.write_text('#!/bin/sh\necho "$PYTHONPATH" "$@"\n')
    python.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(script_for(shell, typer.main.get_command(app), {}, str(python)))
    config = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}[shell]
    line = f"cd /; source {script}; blitz-embed 'a  text' -o x"
    assert _ran(shell, [config, "-c", line], tmp_path) == f"{ROOT} -m functions.embed a  text -o x\n"
