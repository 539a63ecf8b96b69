"""Completion of the command line in a shell: a script that is printed once and asks no Python at a Tab.

`python -m` is no command that a shell completes by, so the script makes one: blitz-embed. Options and
their choices are read from the command itself. Does not know what they do.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shared.errors import InvalidInput

NAME = "blitz-embed"
SHELLS = ("bash", "zsh", "fish")
_ROOT = Path(__file__).parents[2]

_BASH = """{name}() {{ PYTHONPATH={root} {python} -m functions.embed "$@"; }}
_blitz_embed() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
  COMPREPLY=()
  case $before in
{cases}  esac
  if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "{options}" -- "$word")); fi
}}
complete -o default -F _blitz_embed {name}"""

_ZSH = """(( $+functions[compdef] )) || {{ autoload -U compinit && compinit; }}
autoload -U +X bashcompinit && bashcompinit
"""
"""zsh runs bash's completions, once its own are set up, which most people's .zshrc does."""

_FISH = """function {name}; PYTHONPATH={root} {python} -m functions.embed $argv; end
{lines}
complete -c {name} -l help -d 'Show what there is.'"""


def script_for(shell: str, command: Any, choices: Mapping[str, Iterable[str]], python: str) -> str:
    """What the shell evaluates. Raises InvalidInput for a shell that is not in SHELLS.

    command: typer's, whose options are completed. choices: option -> its values, where there are few.
    python: that has the packages.
    """
    if shell not in SHELLS:
        raise InvalidInput(f"use one of: {', '.join(SHELLS)}", field="--completion")
    options = [each for each in command.params if each.opts[0].startswith("-")]
    told = {"name": NAME, "root": shlex.quote(str(_ROOT)), "python": shlex.quote(python)}
    if shell == "fish":
        lines = (_fish_line(option, choices.get(option.opts[0], ())) for option in options)
        return _FISH.format(lines="\n".join(lines), **told)
    cases = "".join(
        f'    {option}) COMPREPLY=($(compgen -W "{" ".join(values)}" -- "$word")); return;;\n'
        for option, values in choices.items()
    )
    names = " ".join([name for option in options for name in option.opts] + ["--help"])
    script = _ZSH + _BASH if shell == "zsh" else _BASH
    return script.format(cases=cases, options=names, **told)


def _fish_line(option: Any, values: Iterable[str]) -> str:
    names = "".join(f" -l {n[2:]}" if n.startswith("--") else f" -s {n[1:]}" for n in option.opts)
    values = f" -x -a {shlex.quote(' '.join(values))}" if values else " -r"
    return f"complete -c {NAME}{names}{values} -d {shlex.quote(option.help or '')}"
