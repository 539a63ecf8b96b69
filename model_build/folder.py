"""Reads the files of a model's folder, with limits, and words the errors for invalid ones.

It does not know what the files mean. Symbolic links are followed, since the folder is the operator's own
and snapshots in the hub's cache consist of them; limits and file types are checked on the target.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, TypeVar

import msgspec

from shared.errors import BlitzError, InvalidInput
from shared.models.manifest import MAX_TOKENIZER_BYTES
from shared.storage.regular_files import FileRefused, read_capped

MAX_FILES = 10_000
"""In a model's folder. Models at the hub have some dozens."""

MAX_JSON_BYTES = 16 << 20
"""Of a configuration or an index; real ones have some KB."""

_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model")
_CONFIGURATIONS = ("*config.json", "*_map.json", "*index.json", "added_tokens.json", "modules.json")

_MAX_REASON = 200

T = TypeVar("T")


def refused(message: str) -> InvalidInput:
    """The error for a model that this builder cannot serve."""
    return InvalidInput(message, field="model")


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Translate any exception of a library into a refusal: `message` and the exception's text.

    A panic of a library's Rust code is not an Exception.
    """
    try:
        yield
    except BlitzError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:_MAX_REASON]
        raise refused(f"{message} ({type(error).__name__}: {reason})") from error


def check_folder(folder: Path, memory_bytes: int) -> None:
    """Check name, type and size of every file before any is read. Raises InvalidInput.

    Opening a FIFO or device would block, and libraries open files by themselves. memory_bytes: of this
    machine; a build needs more memory than the weights have bytes.
    """
    weights = 0
    for count, path in enumerate(_files(folder)):
        if count == MAX_FILES:
            raise refused(f"the folder has more than {MAX_FILES} files: this is not a model's folder")
        size = _size(path)
        for patterns, limit in ((_VOCABULARIES, MAX_TOKENIZER_BYTES), (_CONFIGURATIONS, MAX_JSON_BYTES)):
            if size > limit and any(path.match(pattern) for pattern in patterns):
                raise refused(f"{path.name} has {size} bytes; at most {limit} are read")
        weights += size if path.suffix == ".safetensors" else 0
    if weights > memory_bytes:
        raise refused(
            f"the weights have {weights} bytes, and this machine's memory has {memory_bytes}: a build "
            "loads all of them"
        )


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _size(path: Path) -> int:
    try:
        status = path.stat()
    except OSError:  # a dangling or circular link counts as absent
        return 0
    if not S_ISREG(status.st_mode) and not S_ISDIR(status.st_mode):
        raise refused(f"{path.name} in the model's folder is no regular file")
    return status.st_size


def read_text(path: Path, max_bytes: int) -> str | None:
    """A whole UTF-8 file; None if there is none. Raises InvalidInput (field "model")."""
    try:
        return read_capped(path, max_bytes).decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except FileRefused as refusal:
        raise refused(f"{path.name} in the model's folder {refusal.reason}") from refusal
    except UnicodeDecodeError as error:
        raise refused(f"{path.name} is not UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: there is a NUL in its name
        raise refused(f"{path.name} cannot be read") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file. Raises InvalidInput (field "model")."""
    value = read_value(path)
    if value is not None and not isinstance(value, dict):
        raise refused(f"{path.name} is not a JSON object")
    return value


def read_value(path: Path) -> Any:
    """The content of a JSON file; None if there is no file. Raises InvalidInput (field "model")."""
    text = read_text(path, MAX_JSON_BYTES)
    try:
        return None if text is None else json.loads(text)
    except RecursionError as error:
        raise refused(f"{path.name} is nested too deeply") from error
    except ValueError as error:
        raise refused(f"{path.name} is not JSON") from error


def fields_of(value: Any, kind: type[T], name: str) -> T:
    """A JSON value as `kind`. name: of its file. Raises InvalidInput that names the field."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise refused(f"{name} is not valid: {error}") from error
