"""Bulk storage in a folder of one machine, for any number of its processes.

It does not know jobs, nor Azure. Layout: bulk-in/KEY and bulk-out/KEY are plain files, so that people
can drop and take them; each container keeps its own files below .blitz/; queues/NAME holds a file a
message. POSIX only (flock), on a file system that has hard links.

Everything becomes visible by one link or rename of a finished file, and the only lock dies with its
process: kill -9 at any moment leaves the old state or the new, and at worst a partial file, which a
later write sweeps. Files, because the kernel already gives what sqlite would be there for, and people
can look at them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from stat import S_ISREG

from shared.bulk.storage import (
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
from shared.errors import InvalidInput, SourceChanged
from shared.object_store import disk_errors

_BLOCK_BYTES = 4 << 20
_ABANDONED_S = 3600.0
_MAX_PART_BYTES = 255
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
        self._own = root / OWN

    def stat(self, key: str) -> BlobStat | None:
        target = self._path(key)
        with disk_errors(STORE):
            while (status := _status(target)) is not None:
                etag = _etag(status)
                metadata = self._metadata(key, etag)
                # Without metadata it may be that a writer came between and took it with the old blob.
                if metadata or ((now := _status(target)) is not None and _etag(now) == etag):
                    return BlobStat(key, status.st_size, etag, status.st_mtime, metadata)
        return None

    def read(self, key: str) -> bytes | None:
        with disk_errors(STORE), suppress(*_ABSENT):
            return self._path(key).read_bytes()
        return None

    def read_range(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        with disk_errors(STORE), suppress(*_ABSENT), self._path(key).open("rb") as stream:
            if _etag(os.fstat(stream.fileno())) == etag:
                stream.seek(start)
                data = stream.read(length)
                # Again, because people may write into a file in place.
                if _etag(os.fstat(stream.fileno())) == etag:
                    return data
        raise SourceChanged("the input was changed or deleted while it was read")

    def create(self, key: str, data: bytes | Path) -> bool:
        target = self._path(key)
        if self.stat(key) is not None:
            return False
        with _finished(self._own / "partial", _blocks(data)) as partial, _no_collision():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(partial, target)
            except FileExistsError:
                if target.is_dir():
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

    def delete(self, key: str) -> None:
        target = self._path(key)
        with disk_errors(STORE), self._locked(), suppress(*_ABSENT):
            target.unlink()
            self._keep_metadata(key, "", {})

    def _path(self, key: str) -> Path:
        if any(len(part.encode()) > _MAX_PART_BYTES for part in check_key(key).split("/")):
            raise InvalidInput(
                f"in a folder, a part of a blob's name has at most {_MAX_PART_BYTES} bytes"
            )
        return self._root / key

    def _put(
        self, key: str, chunks: Iterable[bytes], metadata: Metadata, *, expected: str | None
    ) -> bool:
        """Replace what is there; False if an ETag is `expected` and it is not that of what is there."""
        target = self._path(key)
        with (
            _finished(self._own / "partial", chunks) as partial,
            _no_collision(),
            self._locked(),
        ):
            if expected is not None and ((now := _status(target)) is None or _etag(now) != expected):
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            etag, checked = _etag(partial.stat()), check_metadata(metadata)
            self._add_metadata(key, etag, checked)
            partial.replace(target)
            self._keep_metadata(key, etag, checked)
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process and thread at a time; released by the kernel when its holder dies."""
        self._own.mkdir(parents=True, exist_ok=True)
        with (self._own / "lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _keys(self, prefix: str) -> Iterator[str]:
        folder = prefix.rpartition("/")[0]
        if folder and not is_key(folder):
            return
        start = self._path(folder) if folder else self._root

        def fail(error: OSError) -> None:
            if not isinstance(error, _ABSENT):
                raise error

        with disk_errors(STORE):
            self._root.mkdir(parents=True, exist_ok=True)  # where people find that they can drop files
            for directory, _, names in os.walk(start, onerror=fail):
                parent = Path(directory).relative_to(self._root)
                for key in ((parent / name).as_posix() for name in names):
                    if key.startswith(prefix) and is_key(key):
                        yield key

    # Metadata lies in a file named by the ETag of the version that it belongs to: written before that
    # version appears and deleted after it went, it is never that of another version.
    def _metadata_folder(self, key: str) -> Path:
        return self._own / "metadata" / hashlib.sha256(key.encode()).hexdigest()

    def _metadata(self, key: str, etag: str) -> dict[str, str]:
        with suppress(FileNotFoundError):
            metadata: dict[str, str] = json.loads((self._metadata_folder(key) / etag).read_bytes())
            return metadata
        return {}

    def _add_metadata(self, key: str, etag: str, metadata: Mapping[str, str]) -> None:
        if metadata:
            folder = self._metadata_folder(key)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / etag).write_text(json.dumps(metadata))

    def _keep_metadata(self, key: str, etag: str, metadata: Mapping[str, str]) -> None:
        """Delete that of other versions; the caller holds the lock, so nobody is about to need it."""
        folder = self._metadata_folder(key)
        with suppress(FileNotFoundError):
            for name in set(os.listdir(folder)) - {etag}:
                (folder / name).unlink()
            if not metadata:
                folder.rmdir()


class FolderQueue:
    """A message is a file, and its name is its state: when it is visible, how often it was received.

    To receive or renew is to rename: of many that try, the kernel lets one succeed. A name never comes
    back, because the count grows with each receiver, and the time with its renewals: so it serves as the
    receipt. `receive` lists the folder: fine for the thousands of messages that one machine works off.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def send(self, body: bytes, *, delay_s: float = 0.0) -> None:
        with _finished(self._root / ".partial", [body]) as partial, disk_errors(STORE):
            partial.replace(self._root / _message_name(delay_s, 0, uuid.uuid4().hex))

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
                    body = (self._root / receipt).read_bytes()
                    return Message(match["id"], body, count, receipt)
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


def _status(path: Path) -> os.stat_result | None:
    """None if there is no file."""
    with suppress(*_ABSENT):
        status = path.stat()
        return status if S_ISREG(status.st_mode) else None
    return None


def _etag(status: os.stat_result) -> str:
    """Time of writing, size, inode: known without reading, also for files that people drop.

    Our own writes set the time to the nanosecond, and a new file each: two versions never share it. A
    hash of the content would cost a pass over 2 GB at every look, and not change when the same is
    written again, which on Azure it does.
    """
    return f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"


@contextmanager
def _finished(folder: Path, chunks: Iterable[bytes]) -> Iterator[Path]:
    """A file in `folder` that holds `chunks`, to be linked or moved to where it belongs.

    On disk before it can be seen: what was acknowledged outlives a power failure too, since journals
    keep the order of links and renames.
    """
    with disk_errors(STORE):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        handle, name = tempfile.mkstemp(dir=folder)
    partial = Path(name)
    try:
        with disk_errors(STORE), open(handle, "wb") as sink:
            for chunk in chunks:
                sink.write(chunk)
            sink.flush()
            os.fchmod(handle, 0o644)  # mkstemp makes 0600, which another user's process cannot read
            now_ns = time.time_ns()  # the kernel's own time of writing may stand still for milliseconds
            os.utime(handle, ns=(now_ns, now_ns))
            os.fsync(handle)
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Delete what writers that died left."""
    oldest = time.time() - _ABANDONED_S
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            if entry.stat().st_mtime < oldest:
                os.unlink(entry)


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
