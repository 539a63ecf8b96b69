"""What bulk jobs are stored in: two containers of blobs and durable queues, and what they guarantee.

It does not know jobs, models or file formats, nor how a folder or Azure keeps the guarantees. All of it
is thread-safe and blocking: call it off the event loop. Every method raises StoreUnavailable or
Unavailable when the storage does not serve, and InvalidInput for a key that `check_key` refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias

import msgspec

from shared.errors import InvalidInput

SOURCE, OUT = "bulk-in", "bulk-out"
OWN = ".blitz"
"""A folder's own files lie below this name in it, so no key begins with it."""
STORE = "the bulk storage"
NO_KEY = (
    "a blob's name must have 1 to 1,024 characters, valid Unicode, no backslashes or control "
    f'characters, no empty, "." or ".." segments between its slashes, and must not begin with {OWN}/'
)

_MAX_KEY_CHARS = 1024
_MAX_METADATA_CHARS = 8 << 10  # Azure's, names included
_NOT_IN_KEYS = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")
_METADATA_NAME = re.compile(r"[a-z_][a-z0-9_]*")

Metadata: TypeAlias = Mapping[str, str] | Callable[[], Mapping[str, str]]
"""Of a blob; a callable is asked once the blob's last byte has come."""


class BlobStat(msgspec.Struct, frozen=True):
    """One version of a blob.

    etag: another one after every write, without quotes.
    modified_s: seconds since 1970; whole ones on Azure.
    metadata: names in lower case.
    """

    key: str
    size: int
    etag: str
    modified_s: float
    metadata: Mapping[str, str]


class Message(msgspec.Struct, frozen=True):
    """A message as received. receipt: what `renew` and `delete` need; void once either was called with
    it, or another has received the message.

    dequeue_count: how often it was received, this time included.
    """

    id: str
    body: bytes
    dequeue_count: int
    receipt: str


class Blobs(Protocol):
    """One container. Writes are atomic: readers see the old blob or the new one.

    `create` and `replace` may return False although they wrote: an Azure request whose answer was lost
    is sent again, and then finds its own write. So the caller looks at what is there.
    """

    def stat(self, key: str) -> BlobStat | None:
        """None if there is no such blob."""

    def read(self, key: str) -> bytes | None:
        """A small blob; None if there is none."""

    def read_range(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        """`length` bytes from `start`, fewer at the end, none beyond it.

        Raises SourceChanged if the blob is gone or its ETag is another one.
        """

    def create(self, key: str, data: bytes | Path) -> bool:
        """Write if there is none. Of concurrent callers, in any process, one gets True."""

    def write(self, key: str, data: bytes | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write, replacing blob and metadata. Raises InvalidInput as `check_metadata` does."""

    def replace(self, key: str, data: bytes | Path, *, etag: str) -> bool:
        """Write if the blob's ETag is `etag`; False if it is another one or the blob is gone."""

    def write_stream(self, key: str, blocks: Iterable[bytes], metadata: Metadata | None = None) -> None:
        """Like `write`, of any size in bounded memory. If `blocks` raises, nothing has changed."""

    def list(self, prefix: str) -> Iterator[BlobStat]:
        """Blobs whose key begins with `prefix`, ordered by key; none whose key `is_key` refuses."""

    def unnamed(self) -> Iterator[BlobStat]:
        """Blobs whose names `is_key` refuses; their key is the name as it can be shown.

        Each is logged once.
        """

    def delete(self, key: str) -> None:
        """Nothing happens if there is none."""


class Queue(Protocol):
    """Messages arrive at least once, in no promised order, and do not expire."""

    def send(self, body: bytes) -> None:
        """body: at most 48 KiB."""

    def receive(self, *, visible_after_s: float) -> Message | None:
        """A message, hidden from all others for so long (Azure: whole seconds, rounded up, at least 1).

        None if none is visible.
        """

    def renew(self, message: Message, *, visible_after_s: float) -> Message | None:
        """Hide it for so long from now (Azure: whole seconds, rounded up); it gets a new receipt.

        None if its receipt is void, which it also is if the answer of an Azure request was lost and it
        was sent again. The message then comes again.
        """

    def delete(self, message: Message) -> None:
        """Delete it. Nothing happens if the receipt is void."""

    def depth(self) -> int:
        """About how many messages there are, hidden ones included."""


class Storage(msgspec.Struct, frozen=True):
    """source: bulk-in. out: bulk-out. queue: by name; lower-case letters, digits and hyphens.

    link: a URL that reads a blob of out for some minutes, for whoever has it; None: there are none here.
    """

    source: Blobs
    out: Blobs
    queue: Callable[[str], Queue]
    link: Callable[[str], str] | None = None


def is_key(key: str) -> bool:
    """Whether it is a valid blob name on Azure and the path of a file inside the folder.

    1 to 1,024 characters; segments between slashes are not empty, "." or ".."; no backslash (Azure takes
    it for a slash), control character or lone surrogate; the first segment is not the folder's own.
    """
    segments = key.split("/")
    return (
        0 < len(key) <= _MAX_KEY_CHARS
        and segments[0] != OWN
        and not any(segment in ("", ".", "..") for segment in segments)
        and not _NOT_IN_KEYS.search(key)
    )


def check_key(key: str) -> str:
    """The key itself. Raises InvalidInput if `is_key` refuses it."""
    if not is_key(key):
        raise InvalidInput(NO_KEY)
    return key


def check_metadata(metadata: Metadata | None) -> dict[str, str]:
    """A copy. Raises InvalidInput for values that an HTTP header would change or refuse."""
    checked = dict(metadata() if callable(metadata) else metadata or {})
    for name, value in checked.items():
        if not _METADATA_NAME.fullmatch(name):
            raise InvalidInput("a blob's metadata names must be lower-case letters, digits and _")
        if not (value and value.isascii() and value.isprintable() and value == value.strip()):
            raise InvalidInput(
                f"a blob's metadata must be printable ASCII, not empty, no spaces around: {name}"
            )
    if sum(map(len, (*checked, *checked.values()))) > _MAX_METADATA_CHARS:
        raise InvalidInput(
            f"a blob's metadata must have at most {_MAX_METADATA_CHARS} characters in all"
        )
    return checked
