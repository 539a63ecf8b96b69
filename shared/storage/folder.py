"""Bulk storage in a folder of one machine, for any number of its processes.

It does not know jobs, nor Azure. Layout: bulk-in/KEY and bulk-out/KEY are plain files, so that people
can drop and take them; each container keeps its own files below .blitz/; queues/NAME holds a file a
message. POSIX only (flock), on a file system that has hard links. Whoever may drop files need not be one
who may read all that this process can: no link is followed, see regular_files.py.

Everything becomes visible by one link or rename of a finished file, and the only lock dies with its
process: kill -9 at any moment leaves the old state or the new, and at worst a partial file, which a
later write sweeps. Files, because the kernel already gives what sqlite would be there for, and people
can look at them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR

from shared.errors import InvalidInput, SourceChanged
from shared.storage.blobs import (
    OUT,
    OWN,
    SOURCE,
    STORE,
    BlobStat,
    Message,
    Metadata,
    Storage,
    check_key,
    check_metadata,
    is_key,
)
from shared.storage.folder_files import names_below, opened, opened_folder
from shared.storage.folder_files import status as _status
from shared.storage.shown_names import shown, tell
from shared.storage.translate import disk_errors

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 4 << 20
_ABANDONED_S = 3600.0
_MAX_PART_BYTES = 255
_MESSAGE_BYTES = 48 << 10
_PARTIAL = f"{OWN}/partial"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_MESSAGE = re.compile(r"(?P<visible_ns>\d{20})\.(?P<count>\d{6})\.(?P<id>[0-9a-f]{32})")


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
            _finished(self._root, _PARTIAL, _blocks(data)) as (partials, partial),
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

    def write_stream(self, key: str, chunks: Iterable[bytes], metadata: Metadata | None = None) -> None:
        known = metadata if callable(metadata) else check_metadata(metadata)
        self._put(key, chunks, known, expected=None)

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
        self, key: str, chunks: Iterable[bytes], metadata: Metadata, *, expected: str | None
    ) -> bool:
        """Replace what is there; False if an ETag is `expected` and it is not that of what is there."""
        folder, _, name = _check(key).rpartition("/")
        with (
            _finished(self._root, _PARTIAL, chunks) as (partials, partial),
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
        """Where people find that they can drop files. One that vanishes may be a disk that is away."""
        gone = not self._root.is_dir()
        self._root.mkdir(parents=True, exist_ok=True)
        if gone and self._was_there:
            _log.warning("bulk: the folder %s has vanished, and is made anew, empty", self._root.name)
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
                file = os.open(etag, _NEW, 0o644, dir_fd=folder)
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


class FolderQueue:
    """A message is a file, and its name is its state: when it is visible, how often it was received.

    To receive or renew is to rename: of many that try, the kernel lets one succeed. A name never comes
    back, because the count grows with each receiver, and the time with its renewals: so it serves as the
    receipt. `receive` lists the folder: fine for the thousands of messages that one machine works off.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def send(self, body: bytes, *, delay_s: float = 0.0) -> None:
        name = _message_name(delay_s, 0, uuid.uuid4().hex)
        with _finished(self._root, ".partial", [body]) as (partials, partial), disk_errors(STORE):
            os.replace(partial, self._root / name, src_dir_fd=partials)

    def receive(self, *, visible_after_s: float) -> Message | None:
        now_ns = time.time_ns()
        with disk_errors(STORE):
            for name in sorted(self._names()):
                if (match := _MESSAGE.fullmatch(name)) is None:
                    continue
                if int(match["visible_ns"]) > now_ns:
                    break
                count = int(match["count"]) + 1
                receipt = _message_name(visible_after_s, count, match["id"])
                # Not there: another was faster.
                with suppress(FileNotFoundError):
                    (self._root / name).rename(self._root / receipt)
                    with opened(self._root, receipt) as stream:
                        return Message(match["id"], stream.read(_MESSAGE_BYTES), count, receipt)
        return None

    def renew(self, message: Message, *, visible_after_s: float) -> Message | None:
        receipt = _message_name(visible_after_s, message.dequeue_count, message.id)
        with disk_errors(STORE), suppress(FileNotFoundError):
            (self._root / message.receipt).rename(self._root / receipt)
            return replace(message, receipt=receipt)
        return None

    def delete(self, message: Message) -> None:
        with disk_errors(STORE):
            (self._root / message.receipt).unlink(missing_ok=True)

    def depth(self) -> int:
        with disk_errors(STORE):
            return sum(_MESSAGE.fullmatch(name) is not None for name in self._names())

    def _names(self) -> list[str]:
        with suppress(FileNotFoundError):
            return os.listdir(self._root)
        return []


def _message_name(hidden_s: float, count: int, message_id: str) -> str:
    return f"{time.time_ns() + int(hidden_s * 1e9):020d}.{count:06d}.{message_id}"


def _check(key: str) -> str:
    """The key itself. Raises InvalidInput."""
    if any(len(part.encode()) > _MAX_PART_BYTES for part in check_key(key).split("/")):
        raise InvalidInput(f"in a folder, a part of a blob's name has at most {_MAX_PART_BYTES} bytes")
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


@contextmanager
def _finished(root: Path, folder: str, chunks: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """A file that holds `chunks`, to be linked or moved to where it belongs: its folder and its name.

    On disk before it can be seen: what was acknowledged outlives a power failure too, since journals
    keep the order of links and renames.
    """
    with ExitStack() as stack:
        with disk_errors(STORE):
            partials = stack.enter_context(opened_folder(root, folder, make=True))
            _sweep(partials)
            partial = uuid.uuid4().hex
            handle = os.open(partial, _NEW, 0o600, dir_fd=partials)
        try:
            with disk_errors(STORE), open(handle, "wb") as sink:
                for chunk in chunks:
                    sink.write(chunk)
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
