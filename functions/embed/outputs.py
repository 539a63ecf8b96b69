"""What the command line writes of vectors: lines of JSON, an array of NumPy, a table of cosines.

Does not know how they were made.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import orjson
from rich.cells import cell_len, set_cell_size

from shared.contracts import FloatMatrix
from shared.errors import InvalidInput

MAX_LINES = 50
"""Of a table: nobody reads a larger one."""
_LABEL_CELLS = 32


class Writer(Protocol):
    """Takes texts with their vectors, in order."""

    def take(self, texts: Sequence[str], vectors: FloatMatrix) -> None:
        """texts: N. vectors: (N, D)."""
        ...

    def finish(self) -> None:
        """Write what was not written yet."""
        ...


@contextmanager
def sink(out: Path | None, *, is_binary: bool) -> Iterator[BinaryIO]:
    """The file, or stdout. Raises InvalidInput for bytes on a terminal, and what cannot be written.

    What the file held stays until something is written: a command that is refused costs nobody a result.
    """
    if out is None and is_binary and sys.stdout.isatty():
        raise InvalidInput("an array is no text: name a file, or use a pipe", field="--out")
    try:
        with nullcontext(sys.stdout.buffer) if out is None else open(out, "wb", opener=_keep) as stream:
            try:
                yield stream
            finally:
                if out is not None and out.is_file() and stream.tell():
                    stream.truncate()
            stream.flush()
    except BrokenPipeError:  # no failure: who reads has read enough
        raise
    except OSError as error:
        message = f"{out or 'stdout'} cannot be written: {error.strerror}"
        raise InvalidInput(message, field="--out") from error


def _keep(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_TRUNC, 0o666)


class Jsonl:
    """{"text": ..., "embedding": [...]} a line, as soon as there is one."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def take(self, texts: Sequence[str], vectors: FloatMatrix) -> None:
        """Write N lines."""
        option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        for text, row in zip(texts, np.ascontiguousarray(vectors), strict=True):
            self._stream.write(orjson.dumps({"text": text, "embedding": row}, option=option))

    def finish(self) -> None:
        """All is written."""


class Npy:
    """One (N, D) float32 array, as numpy.load reads it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._parts: list[FloatMatrix] = []

    def take(self, texts: Sequence[str], vectors: FloatMatrix) -> None:
        """Keep N rows."""
        self._parts.append(vectors)

    def finish(self) -> None:
        """Write the array: its header has N."""
        np.lib.format.write_array(self._stream, np.concatenate(self._parts), allow_pickle=False)


class Table:
    """The cosine of each text with each other, to be read by people."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._texts: list[str] = []
        self._parts: list[FloatMatrix] = []

    def take(self, texts: Sequence[str], vectors: FloatMatrix) -> None:
        """Raises InvalidInput beyond MAX_LINES."""
        if len(self._texts) + len(texts) > MAX_LINES:
            raise InvalidInput(
                f"a table has at most {MAX_LINES} texts: use jsonl or npy", field="--format"
            )
        self._texts += texts
        self._parts.append(vectors)

    def finish(self) -> None:
        """A line a text: its number, its beginning, its cosines."""
        rows = np.concatenate(self._parts)
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        numbers = range(1, len(rows) + 1)
        lines = [" " * (_LABEL_CELLS + 4) + "".join(f"{number:7}" for number in numbers)]
        for number, text, cosines in zip(numbers, self._texts, rows @ rows.T, strict=True):
            label = " ".join(text.split())
            label = label if cell_len(label) <= _LABEL_CELLS else f"{set_cell_size(label, 31)}…"
            cells = "".join(f"{cosine:7.2f}" for cosine in cosines)
            lines.append(f"{number:3} {set_cell_size(label, _LABEL_CELLS)}{cells}")
        self._stream.write(("\n".join(lines) + "\n").encode())
