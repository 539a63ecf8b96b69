"""Bulk storage in an Azure account, or in Azurite; the only user of azure-storage-queue.

It does not know jobs. Containers and queues are made when they turn out to be missing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceExistsError
from azure.storage.blob import BlobBlock, BlobClient, BlobProperties, BlobServiceClient
from azure.storage.blob import LinearRetry as BlobRetry
from azure.storage.queue import LinearRetry as QueueRetry
from azure.storage.queue import QueueClient, QueueServiceClient

from shared.errors import Misconfigured, SourceChanged
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
from shared.storage.shown_names import shown, tell
from shared.storage.translate import azure_errors, client_options, disk_errors

_BLOCK_BYTES = 4 << 20
# The SDK would ask for the newest version it knows, which an Azurite of the same age refuses.
_API_VERSION = "2023-11-03"
_FOREVER = -1
_VOID = ("MessageNotFound", "PopReceiptMismatch")
"""What is answered to a receipt that is void."""
_ACCOUNT = re.compile(r"https://[^./]+\.blob\.[^/]+")

T = TypeVar("T")


def open_account(url: str, connection_string: str) -> Storage:
    """url: https://ACCOUNT.blob.core.windows.net; empty for the account of the connection string.

    connection_string: empty for DefaultAzureCredential. Raises Misconfigured; does not connect yet.
    """
    blob_options: dict[str, Any] = {
        **client_options(BlobRetry),
        "api_version": _API_VERSION,
        "max_single_get_size": _BLOCK_BYTES,
        "max_chunk_get_size": _BLOCK_BYTES,
        "max_single_put_size": _BLOCK_BYTES,
    }
    queue_options: dict[str, Any] = {**client_options(QueueRetry), "api_version": _API_VERSION}
    url = url.rstrip("/")
    if connection_string:
        if "BlobEndpoint=" in connection_string and "QueueEndpoint=" not in connection_string:
            raise Misconfigured("the storage connection string names no QueueEndpoint")
        try:
            blobs = BlobServiceClient.from_connection_string(connection_string, **blob_options)
            queues = QueueServiceClient.from_connection_string(connection_string, **queue_options)
        except ValueError as error:
            raise Misconfigured("the storage connection string is not valid") from error
        if url and blobs.url.rstrip("/") != url:
            raise Misconfigured("the storage connection string is of another account than BLITZ_STORAGE")
    else:
        if not _ACCOUNT.fullmatch(url):
            raise Misconfigured(
                "BLITZ_STORAGE, or --to, must be file://FOLDER, azurite or https://ACCOUNT.blob.core.windows.net"
            )
        from azure.identity import DefaultAzureCredential

        credential = DefaultAzureCredential()
        blobs = BlobServiceClient(url, credential, **blob_options)
        queues = QueueServiceClient(url.replace(".blob.", ".queue.", 1), credential, **queue_options)
    return Storage(
        AzureBlobs(blobs, SOURCE),
        AzureBlobs(blobs, OUT),
        lambda name: AzureQueue(queues.get_queue_client(name)),
    )


class AzureBlobs:
    """The blobs of one container."""

    def __init__(self, service: BlobServiceClient, container: str) -> None:
        self._container = service.get_container_client(container)

    def stat(self, key: str) -> BlobStat | None:
        blob = self._blob(key)
        found = self._ask(lambda: _unless(("BlobNotFound",), blob.get_blob_properties))
        return None if found is None else _stat(found)

    def read(self, key: str) -> bytes | None:
        blob = self._blob(key)
        return self._ask(lambda: _unless(("BlobNotFound",), lambda: blob.download_blob().readall()))

    def read_range(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        blob = self._blob(key)

        def download() -> bytes:
            data: bytes = blob.download_blob(start, length, **_if_match(etag)).readall()
            return data

        data = self._ask(lambda: _unless(("BlobNotFound", "ConditionNotMet", "InvalidRange"), download))
        if data is not None:
            return data
        # A range beyond the end is refused too, which is no change.
        found = self.stat(key)
        if found is None or found.etag != etag or found.size > start:
            raise SourceChanged("the input was changed or deleted while it was read")
        return b""

    def create(self, key: str, data: bytes | Path) -> bool:
        missing = {"match_condition": MatchConditions.IfMissing}
        return self._put(key, data, {}, missing, refusals=("BlobAlreadyExists", "ConditionNotMet"))

    def write(self, key: str, data: bytes | Path, metadata: Mapping[str, str] | None = None) -> None:
        self._put(key, data, check_metadata(metadata), {})

    def replace(self, key: str, data: bytes | Path, *, etag: str) -> bool:
        return self._put(key, data, {}, _if_match(etag), refusals=("BlobNotFound", "ConditionNotMet"))

    def write_stream(self, key: str, chunks: Iterable[bytes], metadata: Metadata | None = None) -> None:
        self._put(key, chunks, metadata if callable(metadata) else check_metadata(metadata), {})

    def list(self, prefix: str) -> Iterator[BlobStat]:
        return (stat for stat in self._listed(prefix) if is_key(stat.key))

    def unnamed(self) -> Iterator[BlobStat]:
        for stat in self._listed(""):
            if not is_key(stat.key) and not stat.key.startswith(f"{OWN}/"):
                tell(SOURCE, stat.key, "is no name that can be worked with, and is passed over")
                yield replace(stat, key=shown(stat.key))

    def _listed(self, prefix: str) -> Iterator[BlobStat]:
        pages = self._container.list_blobs(name_starts_with=prefix, include=["metadata"]).by_page()
        while (page := self._ask(lambda: next(pages, None))) is not None:
            yield from map(_stat, page)

    def delete(self, key: str) -> None:
        blob = self._blob(key)
        self._ask(lambda: _unless(("BlobNotFound",), blob.delete_blob))

    def _blob(self, key: str) -> BlobClient:
        return self._container.get_blob_client(check_key(key))

    def _ask(self, call: Callable[[], T]) -> T:
        return _made_if("ContainerNotFound", self._container.create_container, call)

    def _put(
        self,
        key: str,
        data: bytes | Path | Iterable[bytes],
        metadata: Metadata,
        condition: Mapping[str, Any],
        *,
        refusals: tuple[str, ...] = (),
    ) -> bool:
        """False if the service answers one of the error codes `refusals`."""
        blob = self._blob(key)
        put: Callable[[], object]
        if isinstance(data, bytes) and len(data) <= _BLOCK_BYTES:
            checked = check_metadata(metadata)
            put = partial(blob.upload_blob, data, overwrite=True, metadata=checked, **condition)
        else:
            blocks = list(self._stage(blob, data))
            put = partial(blob.commit_block_list, blocks, metadata=check_metadata(metadata), **condition)
        return self._ask(lambda: _unless(refusals, put)) is not None

    def _stage(self, blob: BlobClient, data: bytes | Path | Iterable[bytes]) -> Iterator[BlobBlock]:
        """Upload what a commit then makes visible. A block's id is its number and its hash.

        So the same data have the same ids however they came in chunks, and of two writers with different
        data neither commits a block of the other. What is never committed Azure deletes after a week.
        """
        for number, block in enumerate(_blocks(data)):
            block_id = f"{number:05d}-{hashlib.sha256(block).hexdigest()[:32]}"
            self._ask(partial(blob.stage_block, block_id, block))
            yield BlobBlock(block_id)


class AzureQueue:
    """Messages are base64, as the Functions host expects them of a queue trigger by default."""

    def __init__(self, client: QueueClient) -> None:
        self._client = client

    def send(self, body: bytes, *, delay_s: float = 0.0) -> None:
        text = base64.b64encode(body).decode()
        hidden_s = math.ceil(delay_s)
        self._ask(
            lambda: self._client.send_message(text, visibility_timeout=hidden_s, time_to_live=_FOREVER)
        )

    def receive(self, *, visible_after_s: float) -> Message | None:
        hidden_s = max(1, math.ceil(visible_after_s))
        found = self._ask(lambda: self._client.receive_message(visibility_timeout=hidden_s))
        if found is None:
            return None
        return Message(found.id, _body(found.content), found.dequeue_count or 1, found.pop_receipt or "")

    def renew(self, message: Message, *, visible_after_s: float) -> Message | None:
        hidden_s = math.ceil(visible_after_s)
        renewed = self._ask(
            lambda: _unless(
                _VOID,
                lambda: self._client.update_message(
                    message.id, message.receipt, visibility_timeout=hidden_s
                ),
            )
        )
        return None if renewed is None else replace(message, receipt=renewed.pop_receipt or "")

    def delete(self, message: Message) -> None:
        self._ask(
            lambda: _unless(_VOID, lambda: self._client.delete_message(message.id, message.receipt))
        )

    def depth(self) -> int:
        return self._ask(self._client.get_queue_properties).approximate_message_count or 0

    def _ask(self, call: Callable[[], T]) -> T:
        return _made_if("QueueNotFound", self._client.create_queue, call)


def _made_if(missing: str, make: Callable[[], object], call: Callable[[], T]) -> T:
    """The answer of `call`, which is repeated after `make` if it says that its place is missing."""
    with azure_errors(STORE):
        try:
            return call()
        except HttpResponseError as error:
            if _code(error) != missing:
                raise
        with suppress(ResourceExistsError):
            make()
        return call()


def _unless(codes: tuple[str, ...], call: Callable[[], T]) -> T | None:
    """None if the service refuses with one of these error codes."""
    try:
        return call()
    except HttpResponseError as error:
        if _code(error) not in codes:
            raise
        return None


def _code(error: HttpResponseError) -> str:
    return getattr(error, "error_code", None) or ""


def _if_match(etag: str) -> dict[str, Any]:
    return {"etag": f'"{etag}"', "match_condition": MatchConditions.IfNotModified}


def _stat(blob: BlobProperties) -> BlobStat:
    # A listing has the ETag without quotes and a HEAD with them; case of metadata is as it was set.
    metadata = {name.lower(): value for name, value in (blob.metadata or {}).items()}
    return BlobStat(blob.name, blob.size, blob.etag.strip('"'), blob.last_modified.timestamp(), metadata)


def _blocks(data: bytes | Path | Iterable[bytes]) -> Iterator[bytes]:
    """Cut into blocks of 4 MiB, the last one shorter; none of no data."""
    if isinstance(data, Path):
        with disk_errors(STORE), data.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield block
        return
    rest = bytearray()
    for chunk in [data] if isinstance(data, bytes) else data:
        rest += chunk
        while len(rest) >= _BLOCK_BYTES:
            yield bytes(rest[:_BLOCK_BYTES])
            del rest[:_BLOCK_BYTES]
    if rest:
        yield bytes(rest)


def _body(content: str) -> bytes:
    """What is not base64 did not come from here; whoever reads it will refuse it, and it gets poison."""
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        return content.encode()
