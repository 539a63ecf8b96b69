"""What the bulk command line prints of jobs, and the codes that it exits with.

Does not know storage, nor the commands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import msgspec
import typer

from shared.bulk.jobs import ENDED, Status
from shared.errors import BlitzError, Unavailable
from shared.storage.blobs import OUT
from shared.wording import counted

FAILED_ROWS, BAD_INPUT, JOB_FAILED, NO_ANSWER, INTERRUPTED = 1, 2, 3, 4, 130


@contextmanager
def exits(as_json: bool) -> Iterator[None]:
    """Turn our errors into a message on stderr and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; a job that was sent goes on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except Unavailable as error:
        _fail(error, NO_ANSWER, as_json)
    except BlitzError as error:
        _fail(error, BAD_INPUT, as_json)


def print_result(as_json: bool, value: Any, text: str) -> None:
    """value: printed as one line of JSON if `as_json`; else `text` is."""
    print(msgspec.json.encode(value).decode() if as_json else text, flush=True)


def print_status(now: Status, where: str, as_json: bool) -> None:
    """Print a job's status, and exit with its code if that is not 0. where: the containers' folder."""
    counts = now.request_counts
    rows = f"{counts.completed:,} of {counted(counts.total, 'row')}, {counts.failed:,} failed"
    lines = [f"{now.id}: {now.status}, {rows}"]
    if now.truncated:
        lines.append(f"  texts longer than the model reads, and cut: {now.truncated:,}")
    if now.error:
        lines.append(f"  {now.error}")
    if now.options:
        given = ", ".join(f"{name} {value}" for name, value in msgspec.to_builtins(now.options).items())
        without = "; there was no sidecar" if now.sidecar is False else ""
        lines.append(f"  options: {given or 'none'}{without}")
    if now.ended_at is not None and now.output:
        lines.append(f"  output: {where}{OUT}/{now.output}")
    if now.errors:
        lines.append(f"  errors: {where}{OUT}/{now.errors}")
    print_result(as_json, msgspec.to_builtins(now), "\n".join(lines))
    if code := exit_code(now):
        raise typer.Exit(code)


def exit_code(now: Status) -> int:
    """0 for a job that has not ended, or without a failed row."""
    if now.status not in ENDED:
        return 0
    if now.status != "completed":
        return JOB_FAILED
    return FAILED_ROWS if now.request_counts.failed else 0


def table_of(statuses: Sequence[Status]) -> str:
    """Jobs as lines of columns, with a header."""
    rows = [("JOB", "STATUS", "ROWS", "FAILED", "MODEL", "INPUT")]
    for each in statuses:
        counts = each.request_counts
        rows.append(
            (
                each.id,
                each.status,
                f"{counts.completed:,}",
                f"{counts.failed:,}",
                each.model or "-",
                each.source,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _fail(error: BlitzError, code: int, as_json: bool) -> NoReturn:
    print(f"error: {error.message}", file=sys.stderr)
    if as_json:
        print_result(True, {"error": error.message, "param": error.field, "exit_code": code}, "")
    raise typer.Exit(code)
