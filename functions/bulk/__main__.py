"""`python -m functions.bulk`: submit files to be embedded, follow the jobs, fetch the vectors.

    submit FILE --model M                 put a file into bulk-in; --wait follows it to its end
    status JOB, cancel JOB, fetch JOB     a job's id, or the key of its input
    list                                  all jobs, newest first

Works on the storage alone (--to, or what BLITZ_STORAGE names): no service need run. Does not know the
steps of a job.

Exit codes: 0 done, 1 ended with failed rows, 2 bad input, 3 the job failed or was cancelled, 4 the
storage does not answer, 130 interrupted (a job that was sent goes on).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec.structs import replace

from functions.bulk.download import download
from functions.bulk.progress import Following, Sending, wait_for
from functions.bulk.report import exit_code, exits, print_result, print_status, table_of
from shared.bulk import control
from shared.bulk.jobs import Status
from shared.bulk.options import EMPTY, PREFIX
from shared.bulk.passed_over import why_no_input
from shared.bulk.steps.splitting import check_outputs
from shared.command_line import command_of
from shared.errors import InvalidInput, SourceChanged
from shared.settings import Settings, can_be_asked_for
from shared.storage.blobs import SOURCE, BlobStat, Storage
from shared.storage.connect import local_storage, open_storage

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
    prompt_name: Annotated[
        str | None, typer.Option(help="Of the model's prompts, e.g. document; empty for none.")
    ] = None,
    no_truncate: Annotated[
        bool, typer.Option("--no-truncate", help="Texts longer than the model reads are failed rows.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end.")] = False,
    as_json: Json = False,
) -> None:
    """Put FILE into bulk-in, where it is found and embedded."""
    with exits(as_json):
        if not file.is_file():
            raise InvalidInput(f"there is no file {file}", field="FILE")
        given = {
            "model": model,
            "dimensions": dimensions,
            "dtype": dtype and dtype.value,
            "format": format and format.value,
            "text_column": text_column,
            "id_column": id_column,
            "prompt_name": EMPTY if prompt_name == "" else prompt_name,
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
            blob = f"{SOURCE}/{key}"
            print_result(as_json, {"input": blob}, f"sent to {blob}; follow it with:")
            if not as_json:
                print(f"  {_COMMAND} status {key}{f' --to {to}' if to else ''}")
            return
        with Following(key) as following:
            status = wait_for(lambda: _find(storage, sent), lambda job: _status(storage, job), following)
        print_status(status, where, as_json)


@app.command()
def status(job: JobArgument, to: To = "", as_json: Json = False) -> None:
    """How far a job is."""
    with exits(as_json):
        storage, where = _open(to)
        print_status(_status(storage, _named(storage, job)), where, as_json)


@app.command()
def cancel(job: JobArgument, to: To = "", as_json: Json = False) -> None:
    """End a job; what has vectors already is in its output."""
    with exits(as_json):
        storage, _ = _open(to)
        id_ = _named(storage, job)
        control.cancel_job(storage, id_)
        now = _status(storage, id_)
        print_result(as_json, msgspec.to_builtins(now), f"{id_}: {now.status}")


@app.command()
def fetch(
    job: JobArgument,
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    to: To = "",
    as_json: Json = False,
) -> None:
    """Download what a job that has ended has made, and check it."""
    with exits(as_json):
        storage, _ = _open(to)
        id_ = _named(storage, job)
        manifest = control.read_manifest(storage.out, id_)
        if manifest is None:
            raise InvalidInput("the job has not ended yet", field="JOB")
        files = list(download(storage, manifest, out))
        text = "\n".join(map(str, files)) or manifest.status.error or "the job has made no file"
        print_result(as_json, {"files": [str(path) for path in files]}, text)
        if code := exit_code(manifest.status):
            raise typer.Exit(code)


@app.command("list")
def list_jobs(to: To = "", as_json: Json = False) -> None:
    """All jobs, newest first."""
    with exits(as_json):
        storage, _ = _open(to)
        statuses = sorted(
            control.list_statuses(storage.out), key=lambda each: (-each.created_at, each.id)
        )
        print_result(as_json, [msgspec.to_builtins(each) for each in statuses], table_of(statuses))


def _open(to: str) -> tuple[Storage, str]:
    """The storage, and the folder that its containers are in as people see it; "" of an account."""
    settings = Settings.from_env(os.environ)
    settings = replace(settings, storage=to) if to else local_storage(settings)
    storage, folder = open_storage(settings), settings.storage.removeprefix("file://")
    if folder == settings.storage:
        return storage, ""
    # A mistyped folder would be created silently, and no service would work on it.
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
        raise InvalidInput(f"no job has begun for {key} yet", field="JOB")
    return id_


def _status(storage: Storage, job: str) -> Status:
    now = control.read_status(storage.out, job)
    if now is None:
        raise InvalidInput(f"there is no job {job}", field="JOB")
    return now


if __name__ == "__main__":
    app(prog_name=_COMMAND)
