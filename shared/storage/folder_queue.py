"""A durable queue in a folder: a file a message.

Does not know what messages say. POSIX only.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from shared.storage.blobs import STORE, Message
from shared.storage.finished_file import finished_file
from shared.storage.folder_files import opened
from shared.storage.translate import disk_errors

_MESSAGE_BYTES = 48 << 10
_MESSAGE = re.compile(r"(?P<visible_ns>\d{20})\.(?P<count>\d{6})\.(?P<id>[0-9a-f]{32})")


class FolderQueue:
    """A message is a file, and its name is its state: when it is visible, how often it was received.

    To receive or renew is to rename: of many that try, the kernel lets one succeed. A name never comes
    back, because the count grows with each receiver, and the time with its renewals: so it serves as the
    receipt. `receive` lists the folder: fine for the thousands of messages that one machine works off.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def send(self, body: bytes) -> None:
        name = _message_name(0, 0, uuid.uuid4().hex)
        with finished_file(self._root, ".partial", [body]) as (partials, partial), disk_errors(STORE):
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
