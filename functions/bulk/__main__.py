"""`python -m functions.bulk`: give files to be embedded, follow them, fetch what became of them.

    submit FILE --model M                 put a file into bulk-in; --wait follows it to its end
    status JOB, cancel JOB, fetch JOB     a job's id, or the key of its input
    list                                  all jobs, newest first

Talks to the storage alone (--to, or what BLITZ_STORAGE names), as anyone may: no service need run.
It does not know how jobs are worked on.

Exit codes: 0 done, 1 ended with failed rows, 2 bad input, 3 the job failed or was cancelled, 4 the
storage does not answer, 130 interrupted (a job that was sent goes on).
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from functions.bulk.progress import Following, Sending, wait_for
from shared.bulk import control, jobs
from shared.bulk.jobs import ENDED, JobManifest, Status
from shared.bulk.options import PREFIX
from shared.bulk.passed_over import why_no_input
from shared.bulk.steps.splitting import check_outputs
from shared.command_line import command_of
from shared.errors import BlitzError, InvalidInput, SourceChanged, Unavailable
from shared.settings import Settings, can_be_asked_for
from shared.storage.blobs import OUT, SOURCE, BlobStat, Storage
from shared.storage.connect import local_storage, open_storage

FAILED_ROWS, BAD_INPUT, JOB_FAILED, NO_ANSWER, INTERRUPTED = 1, 2, 3, 4, 130

_BLOCK_BYTES = 4 << 20
_COMMAND = command_of("functions.bulk")
_JOB = re.compile(r"[0-9a-f]{24}")

app = typer.Typer(
    help="Give files to be embedded, follow them, fetch what became of them.",
    epilog="Exit codes: 0 done, 1 ended with failed rows, 2 bad input, 3 the job failed or was "
    "cancelled, 4 the storage does not answer, 130 interrupted.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


class Dtype(StrEnum):
    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


class OutputFormat(StrEnum):
    parquet = "parquet"
    jsonl = "jsonl"
    npy = "npy"


To = Annotated[
    str,
    typer.Option(help="file://FOLDER, azurite, or https://ACCOUNT.blob.core.windows.net."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout, all else on stderr.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or its input's key.")]


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="JSONL, OpenAI Batch, CSV, Parquet or text lines.")],
    model: Annotated[str, typer.Option(help="The model; default: the service's.")] = "",
    to: To = "",
    dimensions: Annotated[int | None, typer.Option(min=1, help="Shorter vectors.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the vectors.")] = None,
    format: Annotated[OutputFormat | None, typer.Option(help="Of the output.")] = None,
    text_column: Annotated[str, typer.Option(help="Column or JSON field with the text.")] = "",
    id_column: Annotated[str, typer.Option(help="Column or JSON field with the id.")] = "",
    prompt_name: Annotated[str, typer.Option(help="Of the model's prompts, e.g. document.")] = "",
    no_truncate: Annotated[
        bool, typer.Option("--no-truncate", help="Texts longer than the model reads are failed rows.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended, and tell of it.")] = False,
    as_json: Json = False,
) -> None:
    """Put FILE into bulk-in, where it is found and embedded."""
    with _telling(as_json):
        if not file.is_file():
            raise InvalidInput(f"there is no file {file}", field="FILE")
        given = {
            "model": model,
            "dimensions": dimensions,
            "dtype": dtype and dtype.value,
            "format": format and format.value,
            "text_column": text_column,
            "id_column": id_column,
            "prompt_name": prompt_name,
            "truncate": "false" if no_truncate else "",
        }
        metadata = {f"{PREFIX}{name}": str(value) for name, value in given.items() if value}
        if model and not can_be_asked_for(model):
            raise InvalidInput(
                "a model's name is 1 to 128 letters, digits, '.', '_' and '-', an alias has ':' and "
                "single slashes too; each part begins and ends with a letter or digit",
                field="model",
            )
        key = f"{model}/{file.name}" if model else file.name
        if (why := why_no_input(key)) is not None:
            raise InvalidInput(f"{file.name} is {why}: it would be passed over", field="FILE")
        storage, where = _open(to)
        check_outputs(storage.out, key)
        with Sending(file.name, file.stat().st_size) as sending:
            storage.source.write_stream(key, sending.watch(_blocks(file)), metadata)
        sent = storage.source.stat(key)
        if sent is None:
            raise SourceChanged("the file was deleted right after it was sent")
        if not wait:
            _print(as_json, {"input": f"{SOURCE}/{key}"}, f"sent to {SOURCE}/{key}; follow it with:")
            if not as_json:
                print(f"  {_COMMAND} status {key}{f' --to {to}' if to else ''}")
            return
        with Following(key) as following:
            status = wait_for(lambda: _find(storage, sent), lambda job: _status(storage, job), following)
        _end(status, where, as_json)


@app.command()
def status(job: JobArgument, to: To = "", as_json: Json = False) -> None:
    """How far a job is."""
    with _telling(as_json):
        storage, where = _open(to)
        _end(_status(storage, _named(storage, job)), where, as_json)


@app.command()
def cancel(job: JobArgument, to: To = "", as_json: Json = False) -> None:
    """End a job; what has vectors already is in its output."""
    with _telling(as_json):
        storage, _ = _open(to)
        id_ = _named(storage, job)
        control.cancel_job(storage, id_)
        now = _status(storage, id_)
        _print(as_json, msgspec.to_builtins(now), f"{id_}: {now.status}")


@app.command()
def fetch(
    job: JobArgument,
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    to: To = "",
    as_json: Json = False,
) -> None:
    """Download what a job that has ended has made, and check it."""
    with _telling(as_json):
        storage, _ = _open(to)
        id_ = _named(storage, job)
        manifest = control.read_manifest(storage.out, id_)
        if manifest is None:
            raise InvalidInput("the job has not ended yet", field="JOB")
        files = list(_fetch(storage, manifest, out))
        text = "\n".join(map(str, files)) or manifest.status.error or "the job has made no file"
        _print(as_json, {"files": [str(path) for path in files]}, text)
        if code := _code(manifest.status):
            raise typer.Exit(code)


@app.command("list")
def list_jobs(to: To = "", as_json: Json = False) -> None:
    """All jobs, newest first."""
    with _telling(as_json):
        storage, _ = _open(to)
        found = (
            storage.out.read(stat.key)
            for stat in storage.out.list("jobs/")
            if stat.key.endswith("/status.json")
        )
        statuses = [jobs.decode(data, Status) for data in found if data is not None]
        statuses.sort(key=lambda each: (-each.created_at, each.id))
        _print(as_json, [msgspec.to_builtins(each) for each in statuses], _table(statuses))


def _open(to: str) -> tuple[Storage, str]:
    """The storage, and how to tell people where its containers are."""
    settings = Settings.from_env(os.environ)
    settings = replace(settings, storage=to) if to else local_storage(settings)
    storage, folder = open_storage(settings), settings.storage.removeprefix("file://")
    if folder == settings.storage:
        return storage, ""
    # A folder would come to be by itself, and a mistyped one pass for a storage that nobody works on.
    if not (Path(folder) / SOURCE).is_dir():
        raise InvalidInput(
            f"{folder} is no bulk storage, it has no folder {SOURCE}: start the service with it, or "
            "make that folder",
            field="--to",
        )
    return storage, f"{folder}/"


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            yield block


def _find(storage: Storage, stat: BlobStat) -> str | None:
    return control.find_job(storage.out, "source", stat.key, stat.etag)


def _named(storage: Storage, job: str) -> str:
    """The id of the job that the user means. Raises InvalidInput."""
    if _JOB.fullmatch(job):
        return job
    key = job.removeprefix(f"{SOURCE}/")
    stat = storage.source.stat(key)
    if stat is None:
        raise InvalidInput(f"there is neither a job nor a file {job}", field="JOB")
    id_ = _find(storage, stat)
    if id_ is None:
        raise InvalidInput(f"nobody has begun with {key} yet", field="JOB")
    return id_


def _status(storage: Storage, job: str) -> Status:
    now = control.read_status(storage.out, job)
    if now is None:
        raise InvalidInput(f"there is no job {job}", field="JOB")
    return now


def _fetch(storage: Storage, manifest: JobManifest, folder: Path) -> Iterator[Path]:
    """Each file appears under its name once it is whole and right."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for output in manifest.outputs:
            stat = storage.out.stat(output.key)
            if stat is None:
                raise SourceChanged(f"{OUT}/{output.key} has been deleted")
            target = folder / output.key.rpartition("/")[2]
            # No longer than the name, which may be as long as there are.
            partial = target.with_name(
                f".{hashlib.sha256(output.key.encode()).hexdigest()[:16]}.partial"
            )
            digest = hashlib.sha256()
            with partial.open("wb") as sink, Sending(target.name, stat.size) as receiving:
                ranges = (
                    storage.out.read_range(stat.key, start, _BLOCK_BYTES, etag=stat.etag)
                    for start in range(0, stat.size, _BLOCK_BYTES)
                )
                for block in receiving.watch(ranges):
                    digest.update(block)
                    sink.write(block)
            if digest.hexdigest() != output.sha256:
                partial.unlink()
                raise SourceChanged(
                    f"{OUT}/{output.key} is not this job's any more: a later one wrote it"
                )
            partial.replace(target)
            yield target
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be written: {error.strerror}", field="--out") from error


def _end(now: Status, where: str, as_json: bool) -> None:
    """Tell of a job and exit by how it ended; with 0 if it has not."""
    counts = now.request_counts
    rows = f"{counts.completed:,} of {counts.total:,} rows, {counts.failed:,} failed"
    lines = [f"{now.id}: {now.status}, {rows}"]
    if now.truncated:
        lines.append(f"  {now.truncated:,} texts were longer than the model reads, and cut")
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
    _print(as_json, msgspec.to_builtins(now), "\n".join(lines))
    if code := _code(now):
        raise typer.Exit(code)


def _code(now: Status) -> int:
    if now.status not in ENDED:
        return 0
    if now.status != "completed":
        return JOB_FAILED
    return FAILED_ROWS if now.request_counts.failed else 0


def _table(statuses: list[Status]) -> str:
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


@contextmanager
def _telling(as_json: bool) -> Iterator[None]:
    """Our errors as a message and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; a job that was sent goes on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except Unavailable as error:
        _fail(error, NO_ANSWER, as_json)
    except BlitzError as error:
        _fail(error, BAD_INPUT, as_json)


def _fail(error: BlitzError, code: int, as_json: bool) -> NoReturn:
    print(f"error: {error.message}", file=sys.stderr)
    if as_json:
        _print(True, {"error": error.message, "param": error.field, "exit_code": code}, "")
    raise typer.Exit(code)


def _print(as_json: bool, value: Any, text: str) -> None:
    print(msgspec.json.encode(value).decode() if as_json else text, flush=True)


if __name__ == "__main__":
    app(prog_name=_COMMAND)
