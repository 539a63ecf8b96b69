"""Tells on stderr which step of a build runs. It does not know the steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Progressing:
    """Reports the build's steps on stderr: a progress bar on a terminal, otherwise a line per step."""

    def __init__(self, steps: int) -> None:
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=steps)

    def __enter__(self) -> Progressing:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show `name` while the block runs."""
        self._bar.update(self._task, description=name)
        if not self._console.is_terminal:
            typer.echo(name, err=True)
        yield
        self._bar.advance(self._task)
