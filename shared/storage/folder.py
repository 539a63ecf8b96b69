"""Bulk storage in a folder of one machine, for any number of its processes.

It does not know jobs, nor Azure. Layout: bulk-in/KEY and bulk-out/KEY are plain files, so that people
can drop and take them; each container keeps its own files below .blitz/; queues/NAME holds a file a
message. POSIX only (flock), on a file system that has hard links. Whoever may drop files need not be one
who may read all that this process can: no link is followed, see regular_files.py.

Each write becomes visible by one link or rename of a finished file, and the only lock is released when
its process ends: kill -9 at any moment leaves the old state or the new, and at worst a partial file,
which a later write deletes. Files rather than sqlite: the file system has all that is needed, and people
can look at them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR

from shared.errors import InvalidInput, SourceChanged
from shared.storage.blobs import (
    OUT,
    OWN,
    SOURCE,
    STORE,
    BlobStat,
    Metadata,
    Storage,
    check_key,
    check_metadata,
    is_key,
)
from shared.storage.finished_file import NEW, finished_file
from shared.storage.folder_files import names_below, opened, opened_folder
from shared.storage.folder_files import status as _status
from shared.storage.folder_queue import FolderQueue
from shared.storage.shown_names import shown, tell
from shared.storage.translate import disk_errors

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 4 << 20
_MAX_SEGMENT_BYTES = 255
_PARTIAL = f"{OWN}/partial"
_LOCK = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def open_folder(root: Path) -> Storage:
    """Nothing need be there before the first write."""
    return Storage(
        FolderBlobs(root / SOURCE),
        FolderBlobs(root / OUT),
        lambda name: FolderQueue(root / "queues" / check_key(name)),
    )


class FolderBlobs:
    """Blobs are the files below `root`; a key is a file's path in it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._was_there = False

    def stat(self, key: str) -> BlobStat | None:
        _check(key)
        with disk_errors(STORE):
            while (status := _status(self._root, key)) is not None:
                etag = _etag(status)
                metadata = self._metadata(key, etag)
                # Without metadata it may be that a writer came between and took it with the old blob.
                if metadata or ((now := _status(self._root, key)) is not None and _etag(now) == etag):
                    return BlobStat(key, status.st_size, etag, status.st_mtime, metadata)
        return None

    def read(self, key: str) -> bytes | None:
        with disk_errors(STORE), suppress(*_ABSENT), opened(self._root, _check(key)) as stream:
            return stream.read()
        return None

    def read_range(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        with disk_errors(STORE), suppress(*_ABSENT), opened(self._root, _check(key)) as stream:
            if _etag(os.fstat(stream.fileno())) == etag:
                stream.seek(start)
                data = stream.read(length)
                # Again, because people may write into a file in place.
                if _etag(os.fstat(stream.fileno())) == etag:
                    return data
        raise SourceChanged("the input was changed or deleted while it was read")

    def create(self, key: str, data: bytes | Path) -> bool:
        if self.stat(key) is not None:
            return False
        folder, _, name = key.rpartition("/")
        with (
            finished_file(self._root, _PARTIAL, _blocks(data)) as (partials, partial),
            _no_collision(),
            opened_folder(self._root, folder, make=True) as target,
        ):
            try:
                os.link(partial, name, src_dir_fd=partials, dst_dir_fd=target)
            except FileExistsError:
                if _is_folder(name, target):
                    raise
                return False
        return True

    def write(self, key: str, data: bytes | Path, metadata: Mapping[str, str] | None = None) -> None:
        self.write_stream(key, _blocks(data), metadata)

    def replace(self, key: str, data: bytes | Path, *, etag: str) -> bool:
        return self._put(key, _blocks(data), {}, expected=etag)

    def write_stream(self, key: str, blocks: Iterable[bytes], metadata: Metadata | None = None) -> None:
        known = metadata if callable(metadata) else check_metadata(metadata)
        self._put(key, blocks, known, expected=None)

    def list(self, prefix: str) -> Iterator[BlobStat]:
        for key in sorted(self._keys(prefix)):
            if (found := self.stat(key)) is not None:
                yield found

    def unnamed(self) -> Iterator[BlobStat]:
        with disk_errors(STORE), suppress(*_ABSENT):
            for name in names_below(self._root, "", ""):
                if is_key(name) or name.startswith(f"{OWN}/"):
                    continue
                tell(str(self._root), name, "cannot be a blob's name, and is passed over")
                if (found := _status(self._root, name)) is not None:
                    yield BlobStat(shown(name), found.st_size, _etag(found), found.st_mtime, {})

    def delete(self, key: str) -> None:
        folder, _, name = _check(key).rpartition("/")
        with (
            disk_errors(STORE),
            self._locked(),
            suppress(*_ABSENT),
            opened_folder(self._root, folder) as target,
        ):
            os.unlink(name, dir_fd=target)
            self._keep_metadata(key, "", {})

    def _put(
        self, key: str, blocks: Iterable[bytes], metadata: Metadata, *, expected: str | None
    ) -> bool:
        """Replace what is there; False if an ETag is `expected` and it is not that of what is there."""
        folder, _, name = _check(key).rpartition("/")
        with (
            finished_file(self._root, _PARTIAL, blocks) as (partials, partial),
            _no_collision(),
            self._locked(),
        ):
            if expected is not None:
                now = _status(self._root, key)
                if now is None or _etag(now) != expected:
                    return False
            etag, checked = _etag(os.stat(partial, dir_fd=partials)), check_metadata(metadata)
            self._add_metadata(key, etag, checked)
            with opened_folder(self._root, folder, make=True) as target:
                os.replace(partial, name, src_dir_fd=partials, dst_dir_fd=target)
            self._keep_metadata(key, etag, checked)
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process and thread at a time; released by the kernel when its holder dies."""
        with opened_folder(self._root, OWN, make=True) as own:
            lock = os.open("lock", _LOCK, 0o644, dir_fd=own)
        with open(lock, "w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _keys(self, prefix: str) -> Iterator[str]:
        folder = prefix.rpartition("/")[0]
        if folder and not is_key(folder):
            return
        with disk_errors(STORE):
            self._make_root()
        with disk_errors(STORE), suppress(*_ABSENT):
            for key in names_below(self._root, _check(folder) if folder else "", prefix):
                if is_key(key):
                    yield key

    def _make_root(self) -> None:
        """People drop files here, so it must exist. One that vanishes may be an unmounted disk."""
        gone = not self._root.is_dir()
        self._root.mkdir(parents=True, exist_ok=True)
        if gone and self._was_there:
            _log.warning("bulk: the folder %s has vanished; it is made again, empty", self._root.name)
        self._was_there = True

    # Metadata lies in a file named by the ETag of the version that it belongs to: written before that
    # version appears and deleted after it went, it is never that of another version.
    def _metadata_folder(self, key: str) -> str:
        return f"{OWN}/metadata/{hashlib.sha256(key.encode()).hexdigest()}"

    def _metadata(self, key: str, etag: str) -> dict[str, str]:
        with (
            suppress(FileNotFoundError),
            opened(self._root, f"{self._metadata_folder(key)}/{etag}") as stream,
        ):
            metadata: dict[str, str] = json.loads(stream.read())
            return metadata
        return {}

    def _add_metadata(self, key: str, etag: str, metadata: Mapping[str, str]) -> None:
        if metadata:
            with opened_folder(self._root, self._metadata_folder(key), make=True) as folder:
                file = os.open(etag, NEW, 0o644, dir_fd=folder)
            with open(file, "w") as stream:
                stream.write(json.dumps(metadata))

    def _keep_metadata(self, key: str, etag: str, metadata: Mapping[str, str]) -> None:
        """Delete that of other versions; the caller holds the lock, so nobody is about to need it."""
        name = self._metadata_folder(key)
        with suppress(FileNotFoundError):
            with opened_folder(self._root, name) as folder:
                for other in set(os.listdir(folder)) - {etag}:
                    os.unlink(other, dir_fd=folder)
            if not metadata:
                (self._root / name).rmdir()


def _check(key: str) -> str:
    """The key itself. Raises InvalidInput."""
    if any(len(segment.encode()) > _MAX_SEGMENT_BYTES for segment in check_key(key).split("/")):
        raise InvalidInput(
            f"in a folder, a segment of a blob's name has at most {_MAX_SEGMENT_BYTES} bytes"
        )
    return key


def _is_folder(name: str, parent: int) -> bool:
    return S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _etag(status: os.stat_result) -> str:
    """Time of writing, size, inode: known without reading, also for files that people drop.

    Our own writes set the time to the nanosecond, and a new file each: two versions never share it. A
    hash of the content would cost a pass over 2 GB at every look, and not change when the same is
    written again, which on Azure it does.
    """
    return f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"


def _blocks(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            yield block


@contextmanager
def _no_collision() -> Iterator[None]:
    """Blob names that go together on Azure and not in a folder: the caller can fix that."""
    with disk_errors(STORE):
        try:
            yield
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise InvalidInput("in a folder, no blob's name can be where another's folder is") from error
