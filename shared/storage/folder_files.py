"""Files below a folder by relative names, without a way out: regular ones only, behind no link.

How one is opened is in shared.storage.regular_files; here folders are made and listed in that
way, one segment at a time. What is no regular file is treated as absent. Does not know blobs. POSIX
only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from shared.storage.regular_files import FileRefused, open_regular, stat_regular
from shared.storage.shown_names import tell

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_IS_LINK = (errno.ELOOP, errno.EMLINK)


@contextmanager
def opened_folder(root: Path, name: str, *, make: bool = False) -> Iterator[int]:
    """A descriptor of the folder `name` below `root` ("" is `root`, which may be a link itself).

    make: it and those that it is in, where they are missing. Raises what open does;
    NotADirectoryError for a link.
    """
    if make:
        root.mkdir(parents=True, exist_ok=True)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for segment in PurePosixPath(name).parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(segment, dir_fd=folder)
            inner = _open_folder(segment, folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def status(root: Path, name: str) -> os.stat_result | None:
    """None if there is no regular file of that name."""
    with suppress(*_ABSENT):
        return stat_regular(root / name, inside=root)
    return None


@contextmanager
def opened(root: Path, name: str) -> Iterator[BinaryIO]:
    """Raises FileNotFoundError if there is no regular file of that name."""
    try:
        stream = open_regular(root / name, inside=root)
    except (FileRefused, *_ABSENT):
        raise FileNotFoundError from None
    with stream:
        yield stream


def names_below(root: Path, name: str, prefix: str) -> Iterator[str]:
    """Of the regular files below the folder `name` that begin with `prefix`, in no order.

    Others than regular ones are logged, once each. Raises NotADirectoryError and
    FileNotFoundError if there is no such folder.
    """
    with opened_folder(root, name) as fd:
        for path, folders, files, here in os.fwalk(
            ".", onerror=_unless_absent, dir_fd=fd, follow_symlinks=False
        ):
            parent = PurePosixPath(name, path).as_posix()
            parent = "" if parent == "." else f"{parent}/"
            for each in files:
                if not f"{parent}{each}".startswith(prefix):
                    continue
                mode = _mode(each, here)
                if stat.S_ISREG(mode):
                    yield f"{parent}{each}"
                elif mode:
                    _tell(root, f"{parent}{each}")
            for each in folders:
                if stat.S_ISLNK(_mode(each, here)):
                    _tell(root, f"{parent}{each}")


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, _ABSENT):
        raise error


def _mode(name: str, folder: int) -> int:
    """0 if it has gone meanwhile."""
    with suppress(FileNotFoundError):
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    return 0


def _open_folder(name: str, folder: int) -> int:
    """A link, which is refused with one of several codes, is treated as absent."""
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except OSError as error:
        if error.errno in _IS_LINK:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        raise


def _tell(root: Path, name: str) -> None:
    tell(str(root), name, "is no regular file, or a link, and is passed over")
