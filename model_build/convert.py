"""`python -m model_build.convert FOLDER OUT`: a model whose weights are pickles, as safetensors.

    $ python -m model_build.convert ./contriever ./contriever-safetensors

Loading a pickle can run code in it, so the builder never loads one. This command does, in a separate
process in which torch's reader may only make tensors (unpickle.py). That is as safe as torch's reader:
convert only files from a source that you trust, preferably as a user without other rights. It does not
know models: its output is built like any other folder.

Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from model_build.__main__ import BAD_INPUT
from model_build.folder import check_folder, refused
from model_build.formats import pickles_of
from model_build.locate import PATTERNS
from model_build.weights import INDEX, WEIGHTS
from shared.engines.memory import usable_memory
from shared.errors import BlitzError, InvalidInput

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_PROGRAM = Path(__file__).with_name("unpickle.py")
_LONGEST_S = 3_600
_LIBRARIES_BYTES = 8 << 30
"""Address space that torch reserves before it reads a file."""
_COPIES = 4
"""Copies of the weights held at most: as read, as tensors, as output, and decompressed records."""

# Exit code of unpickle.py -> what is wrong, for the error message.
_WRONG = {
    3: "holds something else than tensors, or is damaged: it is not read",
    4: "holds a tensor that another file of its folder holds too",
    5: "takes more memory than its size allows",
}


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(help="The model's folder.")],
    out: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
) -> None:
    """Write the model in FOLDER to OUT with safetensors instead of pickles, and without code."""
    try:
        convert_folder(folder, out)
    except BlitzError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(BAD_INPUT) from error
    typer.echo(f"converted: python -m model_build builds {out}")


def convert_folder(folder: Path, out: Path) -> None:
    """Write `out`: the files of the model's folder without code, and safetensors instead of pickles.

    Raises InvalidInput (field "model" or "out"); `out` does not exist then.
    """
    if not folder.is_dir():
        raise refused("the model is no folder: give one that holds it")
    inside = out.resolve().is_relative_to(folder.resolve())
    if out.exists() or inside or not out.parent.is_dir():
        raise InvalidInput(
            "OUT must not be there yet, nor in FOLDER, and the folder that it is in must be", field="out"
        )
    memory_bytes = usable_memory()
    check_folder(folder, memory_bytes)
    jobs = list(_jobs(folder))
    if not jobs:
        raise refused(
            "there are no pickles (*.bin, *.pt, *.pth, *.ckpt) beside which no safetensors are"
        )
    try:
        with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            made = Path(scratch) / "model"
            _copy(folder, made)
            for parent, pickles in jobs:
                _convert(pickles, made / parent.relative_to(folder) / WEIGHTS, memory_bytes)
            made.rename(out)
    except OSError as error:
        raise InvalidInput("the folder that OUT is in is not writable, or full", field="out") from error


def _jobs(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """(folder, its pickles) of each of the model's folders that has pickles and no safetensors."""
    for parent in (folder, *sorted(path for path in folder.rglob("*") if path.is_dir())):
        names = pickles_of(path.name for path in parent.iterdir() if path.is_file())
        # If there are weights under transformers' names, other pickles are copies in another format.
        names = [name for name in names if name.startswith("pytorch_model")] or names
        if names and not (parent / WEIGHTS).exists() and not (parent / INDEX).exists():
            yield parent, [parent / name for name in names]


def _copy(folder: Path, out: Path) -> None:
    for path in sorted({path for pattern in PATTERNS for path in folder.rglob(pattern)}):
        # The index names shards, which are joined here.
        if path.is_file() and path.name != "pytorch_model.bin.index.json":
            to = out / path.relative_to(folder)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)


def _convert(pickles: list[Path], out: Path, memory_bytes: int) -> None:
    size = sum(path.stat().st_size for path in pickles)
    if 2 * size > memory_bytes:
        raise refused(
            f"the weights have {size} bytes, which are held twice; this machine's memory has "
            f"{memory_bytes}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    limit = _LIBRARIES_BYTES + _COPIES * size
    command = [sys.executable, "-I", str(_PROGRAM), str(limit), str(out), *map(str, pickles)]
    # Without the operator's credentials, in case torch's reader has a vulnerability.
    environment = {"PATH": os.defpath}
    try:
        ended = subprocess.run(  # noqa: S603 - the program is ours
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LONGEST_S
        )
    except subprocess.TimeoutExpired as error:
        raise refused(f"converting {pickles[0].name} took more than {_LONGEST_S} s") from error
    if ended.returncode != 0:
        what = _WRONG.get(ended.returncode, "ends the process that reads it")
        raise refused(f"{' or '.join(path.name for path in pickles[:3])} {what}")


if __name__ == "__main__":
    app(prog_name="python -m model_build.convert")
