"""`python -m functions.embed`: texts become vectors, on the command line.

    "a text" "another"           texts as arguments
    --file notes.txt             a text a line; with --field NAME a JSON object a line
    sort notes.txt | ...         the same from a pipe

By the service at --url, or without one by a model of --model-store in this process. Does not know how
texts are read, embedded or written.

Exit codes: 0 done, 2 bad input, 4 the service or the store fails, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from functions.embed.completion import SHELLS, script_for
from functions.embed.embedders import Here, Service, TextEmbedder
from functions.embed.outputs import Jsonl, Npy, Table, Writer, sink
from functions.embed.texts import count_texts, texts_of
from shared.command_line import command_of
from shared.errors import BackendFailed, BlitzError, InvalidInput, Unavailable
from shared.settings import Settings
from shared.wording import counted

BAD_INPUT, NO_ANSWER, INTERRUPTED = 2, 4, 130

_COMMAND = command_of("functions.embed")
_EXAMPLES = f"""\b
Examples:
{_COMMAND} "a text" "another" --format table
{_COMMAND} --file notes.txt --format npy --out notes.npy
head -100 rows.jsonl | {_COMMAND} --field text --url http://127.0.0.1:7071 > vectors.jsonl
EMBED_KEY=... {_COMMAND} "a text" --url https://SERVICE --model all-MiniLM-L6-v2
eval "$({_COMMAND} --completion bash)"   # or zsh; then: blitz-embed, and Tab
{_COMMAND} --completion fish | source
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class Format(StrEnum):
    """What is written: a JSON object a text, one NumPy array, or cosines to read."""

    jsonl = "jsonl"
    npy = "npy"
    table = "table"


_WRITERS: Mapping[Format, Callable[[BinaryIO], Writer]] = {
    Format.jsonl: Jsonl,
    Format.npy: Npy,
    Format.table: Table,
}


@app.command(epilog=_EXAMPLES, no_args_is_help=False)
def embed(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none: --file, or a pipe.")] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="A file with a text a line; may come again."),
    ] = None,
    field: Annotated[str, typer.Option(help="Lines are JSON objects; the field with the text.")] = "",
    model: Annotated[str, typer.Option(help="The model; default: the only one.")] = "",
    url: Annotated[str, typer.Option(help="Of a service; default: in this process.")] = "",
    key: Annotated[
        str, typer.Option(envvar="EMBED_KEY", help="The service's; others see what is typed: set it so.")
    ] = "",
    model_store: Annotated[str, typer.Option(help="Without --url: file://FOLDER or a container.")] = "",
    dimensions: Annotated[int | None, typer.Option(min=1, help="Shorter vectors.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="Of the model's prompts; empty: none.")] = None,
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.jsonl,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file; default: stdout.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=2048, help="Texts at once.")] = 128,
    completion: Annotated[
        str, typer.Option(metavar="SHELL", help=f"Print a completion script: {', '.join(SHELLS)}.")
    ] = "",
) -> None:
    """Turn texts into vectors: arguments, the lines of files, or a pipe."""
    with _exits():
        if completion:
            choices = {"--format": list(Format), "--completion": SHELLS}
            print(script_for(completion, typer.main.get_command(app), choices, sys.executable))
            return
        given, files = texts or [], file or []
        if not given and not files and sys.stdin.isatty():
            raise InvalidInput(f"there is no text: see {_COMMAND} --help", field="TEXTS")
        with (
            _embedder(url, key, model_store, model, dimensions, prompt_name) as embedder,
            sink(out, is_binary=format is Format.npy) as stream,
        ):
            writer = _WRITERS[format](stream)
            done = _run(embedder, given, files, field, writer, batch)
            writer.finish()
        if out is not None:
            print(f"{counted(done, 'vector')} in {out}", file=sys.stderr)


def _embedder(
    url: str, key: str, model_store: str, model: str, dimensions: int | None, prompt: str | None
) -> TextEmbedder:
    if url:
        if model_store:
            raise InvalidInput("a service has its own models: leave --model-store out", field="--url")
        return Service(url, key, model, dimensions, prompt)
    settings = Settings.from_env(os.environ)
    return Here(
        replace(settings, model_store=model_store) if model_store else settings,
        *(model or settings.default_model, dimensions, prompt),
    )


def _run(
    embedder: TextEmbedder,
    given: Sequence[str],
    files: Sequence[Path],
    field: str,
    writer: Writer,
    batch: int,
) -> int:
    """Embed all texts, with a bar on a terminal. Returns how many there were."""
    console = Console(stderr=True)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    total = count_texts(given, files) if console.is_terminal else None
    texts = texts_of(given, files, field)
    done = 0
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total)
        while some := list(islice(texts, batch)):
            writer.take(some, embedder.embed(some))
            done += len(some)
            bar.update(task, completed=done)
    if not done:
        raise InvalidInput("there is no text", field="TEXTS")
    return done


@contextmanager
def _exits() -> Iterator[None]:
    """Turn our errors into a message on stderr and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:  # `| head` has read enough
        sys.stderr.close()
        raise typer.Exit from None
    except BlitzError as error:
        print(f"{error.field}: {error.message}" if error.field else error.message, file=sys.stderr)
        is_theirs = isinstance(error, Unavailable | BackendFailed)
        raise typer.Exit(NO_ANSWER if is_theirs else BAD_INPUT) from error


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # what is wrong is told once, in a line
    app(prog_name=_COMMAND)
