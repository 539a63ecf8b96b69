"""A storage in memory that can die at any operation, and a driver that delivers as queues do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from shared.bulk.control import FINISH, SPLIT, queue_of
from shared.bulk.pipeline import Bulk
from shared.errors import BlitzError, SourceChanged
from shared.storage.blobs import BlobStat, Message, Metadata, Storage, check_metadata


class Died(BaseException):
    """The process was killed here. No Exception: nothing may catch it and go on."""


class Fuse:
    """Counts operations; `left` of them until the process dies, None: it lives."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.used = 0

    def burn(self) -> None:
        self.used += 1
        if self.left is not None:
            if self.left == 0:
                raise Died
            self.left -= 1


class MemoryBlobs:
    """shared.storage.blobs.Blobs in a dict. clock: Unix seconds."""

    def __init__(self, fuse: Fuse, clock: Callable[[], float]) -> None:
        self._fuse = fuse
        self._clock = clock
        self._versions = itertools.count(1)
        self.blobs: dict[str, tuple[bytes, BlobStat]] = {}

    def _put(self, key: str, data: bytes | Path, metadata: Mapping[str, str] | None = None) -> None:
        content = data.read_bytes() if isinstance(data, Path) else data
        etag = f"v{next(self._versions)}"
        stat = BlobStat(key, len(content), etag, self._clock(), dict(metadata or {}))
        self.blobs[key] = (content, stat)

    def stat(self, key: str) -> BlobStat | None:
        self._fuse.burn()
        return self.blobs[key][1] if key in self.blobs else None

    def read(self, key: str) -> bytes | None:
        self._fuse.burn()
        return self.blobs[key][0] if key in self.blobs else None

    def read_range(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        self._fuse.burn()
        if key not in self.blobs or self.blobs[key][1].etag != etag:
            raise SourceChanged("the blob has changed while it was read")
        return self.blobs[key][0][start : start + length]

    def create(self, key: str, data: bytes | Path) -> bool:
        self._fuse.burn()
        if key in self.blobs:
            return False
        self._put(key, data)
        return True

    def write(self, key: str, data: bytes | Path, metadata: Mapping[str, str] | None = None) -> None:
        self._fuse.burn()
        self._put(key, data, metadata)

    def replace(self, key: str, data: bytes | Path, *, etag: str) -> bool:
        self._fuse.burn()
        if key not in self.blobs or self.blobs[key][1].etag != etag:
            return False
        self._put(key, data)
        return True

    def write_stream(self, key: str, blocks: Iterable[bytes], metadata: Metadata | None = None) -> None:
        content = b"".join(blocks)
        self.write(key, content, check_metadata(metadata))

    def list(self, prefix: str) -> Iterator[BlobStat]:
        self._fuse.burn()
        yield from [self.blobs[key][1] for key in sorted(self.blobs) if key.startswith(prefix)]

    def unnamed(self) -> Iterator[BlobStat]:
        return iter(())

    def delete(self, key: str) -> None:
        self._fuse.burn()
        self.blobs.pop(key, None)


class MemoryQueue:
    """A storage queue; what was received and not deleted is visible again after `reappear`."""

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse
        self._numbers = itertools.count(1)
        self.messages: dict[str, tuple[bytes, int]] = {}
        self._hidden: set[str] = set()

    def send(self, body: bytes) -> None:
        self._fuse.burn()
        self.messages[str(next(self._numbers))] = (body, 0)

    def receive(self, *, visible_after_s: float) -> Message | None:
        for id_, (body, count) in self.messages.items():
            if id_ not in self._hidden:
                self._hidden.add(id_)
                self.messages[id_] = (body, count + 1)
                return Message(id_, body, count + 1, id_)
        return None

    def renew(self, message: Message, *, visible_after_s: float) -> Message | None:
        return message if message.receipt in self.messages else None

    def delete(self, message: Message) -> None:
        self._fuse.burn()
        self.messages.pop(message.receipt, None)

    def depth(self) -> int:
        return len(self.messages)

    def reappear(self) -> None:
        self._hidden.clear()


class Memory:
    """A whole storage in memory."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.fuse = Fuse()
        self.source = MemoryBlobs(self.fuse, clock)
        self.out = MemoryBlobs(self.fuse, clock)
        self.queues: dict[str, MemoryQueue] = {}
        self.storage = Storage(self.source, self.out, self.queue)

    def queue(self, name: str) -> MemoryQueue:
        return self.queues.setdefault(name, MemoryQueue(self.fuse))

    def kill(self) -> None:
        """What a dead process held comes back."""
        self.fuse.left = None
        for queue in self.queues.values():
            queue.reappear()


TRIES = 5


async def drain(memory: Memory, bulk: Bulk, *, newest_first: bool = False) -> None:
    """Deliver messages until there are none, as the Functions host does: so many tries, then poison.

    Only for errors that are meant; a bug that is tried again would pass for a bad row.
    """
    steps = [(SPLIT, bulk.split), (FINISH, bulk.finish)]
    steps += [(queue_of(device), bulk.embed) for device in ("cpu", "gpu")]
    while True:
        for name, step in reversed(steps) if newest_first else steps:
            queue = memory.queue(name)
            if (message := queue.receive(visible_after_s=60)) is None:
                continue
            try:
                await step(message.body)
            except BlitzError:
                if message.dequeue_count < TRIES:
                    queue.reappear()
                    break
                await bulk.give_up(message.body)
            queue.delete(message)
            break
        else:
            return
