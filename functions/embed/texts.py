"""The texts that the command line is given: arguments, lines of files, lines of a pipe.

Does not know what becomes of them.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

from shared.errors import InvalidInput

_ENCODING = "utf-8-sig"
"""With a mark at its beginning or without."""


def texts_of(given: Sequence[str], files: Sequence[Path], field: str) -> Iterator[str]:
    """The arguments, then the files' lines; without either the lines of stdin. Blank lines are left out.

    field: lines are JSON objects, and it holds their text; "": a line is a text. Raises InvalidInput.
    """
    for text in given:
        if not text.strip():
            raise InvalidInput("a text is empty", field="TEXTS")
        if not _is_unicode(text):
            raise InvalidInput("a text is not UTF-8", field="TEXTS")
        yield text
    sources: Sequence[Path | None] = files if given or files else [None]
    for path in sources:
        yield from _read(_name(path), _lines_of(path), field)


def count_texts(given: Sequence[str], files: Sequence[Path]) -> int | None:
    """How many there will be, for a progress bar; None where a source can be read only once.

    Raises InvalidInput for a file that cannot be read.
    """
    if (not given and not files) or not all(path.is_file() for path in files):
        return None  # a pipe; or texts_of tells what is wrong with the path
    return len(given) + sum(bool(line.strip()) for path in files for line in _lines_of(path))


def _stdin() -> TextIO:
    """UTF-8 as files are, whatever the locale."""
    return io.TextIOWrapper(sys.stdin.buffer, _ENCODING)


def _lines_of(path: Path | None) -> Iterator[str]:
    """path: None is stdin."""
    try:
        with path.open(encoding=_ENCODING) if path else nullcontext(_stdin()) as lines:
            yield from lines
    except OSError as error:
        message = f"{_name(path)} cannot be read: {error.strerror}"
        raise InvalidInput(message, field=_option(path)) from error
    except UnicodeDecodeError:
        raise InvalidInput(f"{_name(path)} is not UTF-8 text", field=_option(path)) from None


def _name(path: Path | None) -> str:
    return str(path or "stdin")


def _option(path: Path | None) -> str:
    return "--file" if path else "TEXTS"


def _read(name: str, lines: Iterable[str], field: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not field:
            yield line.rstrip("\r\n")
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        text = row.get(field) if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip() or not _is_unicode(text):
            raise InvalidInput(
                f"line {number} of {name} is no JSON object with a text there", field=f"--field {field}"
            )
        yield text


def _is_unicode(text: str) -> bool:
    """A lone surrogate is none: of an argument's bytes that are no UTF-8, or an escape of JSON."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
