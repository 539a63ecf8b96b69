"""The texts that the command line is given: arguments, lines of files, lines of a pipe.

Does not know what becomes of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from shared.errors import InvalidInput


def texts_of(given: Sequence[str], files: Sequence[Path], field: str) -> Iterator[str]:
    """The arguments, then the files' lines; without either the lines of stdin. Blank lines are left out.

    field: lines are JSON objects, and it holds their text; "": a line is a text. Raises InvalidInput.
    """
    for text in given:
        if not text.strip():
            raise InvalidInput("a text is empty", field="TEXTS")
        yield text
    sources: Iterable[tuple[str, Iterable[str]]] = ((str(path), _lines_of(path)) for path in files)
    if not given and not files:
        sources = [("stdin", sys.stdin)]
    yield from chain.from_iterable(_read(name, lines, field) for name, lines in sources)


def count_texts(given: Sequence[str], files: Sequence[Path]) -> int | None:
    """How many there will be, for a progress bar; None where a source can be read only once.

    Raises InvalidInput for a file that cannot be read.
    """
    if (not given and not files) or not all(path.is_file() for path in files):
        return None  # a pipe; or texts_of tells what is wrong with the path
    return len(given) + sum(bool(line.strip()) for path in files for line in _lines_of(path))


def _lines_of(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            yield from lines
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field="--file") from error
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not UTF-8 text", field="--file") from None


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
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput(
                f"line {number} of {name} is no JSON object with a text there", field=f"--field {field}"
            )
        yield text
