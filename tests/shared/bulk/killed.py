"""Kills a process at every line that writes to a folder storage, and looks at what it leaves.

`python -m tests.shared.bulk.killed FOLDER` forks a child for each line that an operation runs; the child
kills itself there with SIGKILL. A process of its own, because pytest's has threads and must not fork.
Prints, for each operation, at how many lines it was killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from shared.storage import finished_file, folder_queue
from shared.storage import folder as folder_storage
from shared.storage.blobs import Message, Storage
from shared.storage.folder import open_folder

FILES = {module.__file__ for module in (finished_file, folder_queue, folder_storage)}
OLD, NEW, BODY = b"old" * 1000, b"new" * 1000, b"body" * 1000
OLD_METADATA, NEW_METADATA = {"blitz_model": "old"}, {"blitz_model": "new"}


def killed_at_each_line(operation: Callable[[], object]) -> Iterator[bool]:
    """Run it in forked children, the n-th of them killed at the n-th line.

    Yields whether it was acknowledged, after each; the last one is not killed.
    """
    nth, acknowledged = 0, False
    while not acknowledged:
        nth += 1
        child = os.fork()
        if child == 0:
            failed = 1
            try:
                sys.settrace(_killer(nth))
                operation()
                failed = 0
            finally:
                os._exit(failed)
        status = os.waitpid(child, 0)[1]
        acknowledged = os.waitstatus_to_exitcode(status) == 0
        assert acknowledged or os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        yield acknowledged


def _killer(nth: int) -> Callable[[FrameType, str, Any], Any]:
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in FILES:
            return None
        lines += event == "line"
        if lines == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def blob_of(storage: Storage) -> tuple[bytes, dict[str, str]] | None:
    stat, data = storage.out.stat("a/b"), storage.out.read("a/b")
    assert [each.key for each in storage.out.list("")] == ["a/b"][: data is not None]
    if stat is None or data is None:
        assert stat is None
        assert data is None
        return None
    assert stat.size == len(data)
    return data, dict(stat.metadata)


def visible_again(storage: Storage) -> Message | None:
    """The message that there is, if any; it is put back."""
    message = storage.queue("q").receive(visible_after_s=0)
    assert message is None or message.body == BODY
    assert storage.queue("q").depth() == (message is not None)
    return message


def check_blobs(root: Path) -> Iterator[int]:
    """After each kill: the old blob with its metadata, or the new with its own, and no lock is held."""
    storage = open_folder(root)
    old, new = (OLD, OLD_METADATA), (NEW, NEW_METADATA)
    operations: list[tuple[Callable[[], object], object, object]] = [
        (lambda: storage.out.create("a/b", NEW), None, (NEW, {})),
        (lambda: storage.out.write("a/b", NEW, NEW_METADATA), old, new),
        (lambda: storage.out.write_stream("a/b", iter([NEW[:7], NEW[7:]]), NEW_METADATA), old, new),
        (lambda: storage.out.replace("a/b", NEW, etag=etag_of_old(storage)), old, (NEW, {})),
        (lambda: storage.out.delete("a/b"), old, None),
    ]
    for operation, before, after in operations:
        kills = 0
        reset(storage, before is not None)
        for acknowledged in killed_at_each_line(operation):
            found = blob_of(storage)
            assert found == after if acknowledged else found in (before, after)
            kills += not acknowledged
            reset(storage, before is not None)
        yield kills


def reset(storage: Storage, to_old: bool) -> None:
    if to_old:
        storage.out.write("a/b", OLD, OLD_METADATA)
    else:
        storage.out.delete("a/b")


def etag_of_old(storage: Storage) -> str:
    stat = storage.out.stat("a/b")
    assert stat is not None
    return stat.etag


def check_messages(root: Path) -> Iterator[int]:
    """After each kill: a message that was sent and not deleted is whole, and is received again."""
    storage = open_folder(root)
    queue = storage.queue("q")

    kills = 0
    for acknowledged in killed_at_each_line(lambda: queue.send(BODY)):
        if (message := visible_again(storage)) is not None:
            queue.delete(message)
        else:
            assert not acknowledged
        kills += not acknowledged
    yield kills

    kills, received = 0, 0
    queue.send(BODY)
    for acknowledged in killed_at_each_line(lambda: queue.receive(visible_after_s=0)):
        message = visible_again(storage)
        assert message is not None
        assert message.dequeue_count in (received + 1, received + 2)
        received = message.dequeue_count
        kills += not acknowledged
    yield kills

    kills = 0
    for acknowledged in killed_at_each_line(lambda: renew_one(storage)):
        assert visible_again(storage) is not None
        kills += not acknowledged
    yield kills

    kills = 0
    for acknowledged in killed_at_each_line(lambda: delete_one(storage)):
        message = visible_again(storage)
        assert message is None or not acknowledged
        if message is None:
            queue.send(BODY)
        kills += not acknowledged
    yield kills


def renew_one(storage: Storage) -> None:
    message = storage.queue("q").receive(visible_after_s=0)
    assert message is not None
    assert storage.queue("q").renew(message, visible_after_s=0) is not None


def delete_one(storage: Storage) -> None:
    message = storage.queue("q").receive(visible_after_s=0)
    assert message is not None
    storage.queue("q").delete(message)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    finished_file._ABANDONED_S = 0  # what one kill leaves is swept by the next write
    print(*check_blobs(folder), *check_messages(folder))
