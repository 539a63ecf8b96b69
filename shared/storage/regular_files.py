"""Opens files that somebody else put there: regular ones alone, without waiting, up to a size.

It does not know what the files are for, nor how their reader words a refusal. What is checked is what
was opened, never a name that may mean something else a moment later.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG

_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
# Without O_NONBLOCK, to open a FIFO waits until somebody writes to it. Regular files do not mind it.
_FILE = os.O_RDONLY | _CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_FOLDER = os.O_RDONLY | _CLOEXEC | getattr(os, "O_DIRECTORY", 0)


class FileRefused(OSError):
    """A file that is there and is not read. reason: what follows its name in a sentence; no path."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def open_regular(path: Path, *, inside: Path | None = None) -> BufferedReader:
    """Open a regular file to read it.

    inside: a folder above `path`. The folder itself may be reached by symbolic links; below it none is
    followed, neither for the file nor for the folders to it. None: links are followed everywhere.

    Raises FileRefused for a link, FIFO, socket or device; OSError as open() does, for a folder too.
    """
    with _parent(path, inside) as (name, folder):
        handle = _open(name, _FILE if inside is None else _FILE | _NOFOLLOW, folder)
    try:
        mode = os.fstat(handle).st_mode
        if S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not S_ISREG(mode):
            raise FileRefused("is no regular file")
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_capped(path: Path, max_bytes: int, *, inside: Path | None = None) -> bytes:
    """All of a regular file. Raises FileRefused, before it is read, if it has more than `max_bytes`.

    The rest is as in `open_regular`.
    """
    with open_regular(path, inside=inside) as stream:
        too_large = FileRefused(f"has more than {max_bytes} bytes")
        if os.fstat(stream.fileno()).st_size > max_bytes:
            raise too_large
        data = stream.read(max_bytes + 1)  # it may grow meanwhile
    if len(data) > max_bytes:
        raise too_large
    return data


def stat_regular(path: Path, *, inside: Path) -> os.stat_result | None:
    """The status of a regular file below `inside`; None if it is none, or only links lead there.

    Raises OSError as stat() does (FileNotFoundError, NotADirectoryError).
    """
    try:
        with _parent(path, inside) as (name, folder):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileRefused:
        return None
    return status if S_ISREG(status.st_mode) else None


def check_folders(path: Path, *, inside: Path) -> None:
    """Raises FileRefused if a folder between `inside` and `path` is a link; it need not be there."""
    with suppress(FileNotFoundError), _parent(path, inside):
        pass


@contextmanager
def _parent(path: Path, inside: Path | None) -> Iterator[tuple[Path | str, int | None]]:
    """The file's name, and the open folder that it is to be looked up in; None: it is a whole path."""
    # Windows has no dir_fd. It has no FIFOs among files either, and links only from administrators.
    if inside is None or os.open not in os.supports_dir_fd:
        yield path, None
        return
    *folders, name = path.relative_to(inside).parts
    if ".." in (*folders, name):
        raise FileRefused("is named with '..'")
    handle = os.open(inside, _FOLDER)
    try:
        for segment in folders:
            deeper = _open(segment, _FOLDER | _NOFOLLOW, handle)
            os.close(handle)
            handle = deeper
        yield name, handle
    finally:
        os.close(handle)


def _open(name: Path | str, flags: int, folder: int | None) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        # A link is ELOOP where a file is wanted, and ENOTDIR where a folder is.
        if (
            flags & _NOFOLLOW
            and error.errno in (errno.ELOOP, errno.ENOTDIR)
            and S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        ):
            raise FileRefused("is behind a symbolic link") from error
        if error.errno == errno.ENXIO:  # a socket
            raise FileRefused("is no regular file") from error
        raise
