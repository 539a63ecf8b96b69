"""A file that becomes visible only when it is whole: written and synced, then linked or moved.

Does not know blobs or messages. Kill a writer at any moment: what it leaves, a later write sweeps.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from shared.storage.blobs import STORE
from shared.storage.folder_files import opened_folder
from shared.storage.translate import disk_errors

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a file is opened that must not be there yet."""
_ABANDONED_S = 3600.0


@contextmanager
def finished_file(root: Path, folder: str, blocks: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """A file that holds `blocks`, to be linked or moved to where it belongs: its folder and its name.

    On disk before it can be seen: what was acknowledged outlives a power failure too, since journals
    keep the order of links and renames.
    """
    with ExitStack() as stack:
        with disk_errors(STORE):
            partials = stack.enter_context(opened_folder(root, folder, make=True))
            _sweep(partials)
            partial = uuid.uuid4().hex
            handle = os.open(partial, NEW, 0o600, dir_fd=partials)
        try:
            with disk_errors(STORE), open(handle, "wb") as sink:
                for block in blocks:
                    sink.write(block)
                sink.flush()
                os.fchmod(handle, 0o644)  # so that another user's process can read it
                now_ns = (
                    time.time_ns()
                )  # the kernel's own time of writing may stand still for milliseconds
                os.utime(handle, ns=(now_ns, now_ns))
                os.fsync(handle)
            yield partials, partial
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial, dir_fd=partials)


def _sweep(folder: int) -> None:
    """Delete what writers that died left."""
    oldest = time.time() - _ABANDONED_S
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            if os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime < oldest:
                os.unlink(name, dir_fd=folder)
