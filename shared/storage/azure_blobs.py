"""A container of an Azure storage account, or of Azurite.

Does not know what blobs hold. The container is made when it turns out to be missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from azure.core import MatchConditions
from azure.storage.blob import BlobBlock, BlobClient, BlobProperties, BlobServiceClient
from msgspec.structs import replace

from shared.errors import SourceChanged
from shared.storage.azure_answers import made_if, unless
from shared.storage.blobs import (
    OWN,
    SOURCE,
    STORE,
    BlobStat,
    Metadata,
    check_key,
    check_metadata,
    is_key,
)
from shared.storage.shown_names import shown, tell
from shared.storage.translate import disk_errors

BLOCK_BYTES = 4 << 20

T = TypeVar("T")


class AzureBlobs:
    """The blobs of one container."""

    def __init__(self, service: BlobServiceClient, container: str) -> None:
        self._container = service.get_container_client(container)

    def stat(self, key: str) -> BlobStat | None:
        blob = self._blob(key)
        found = self._ask(lambda: unless(("BlobNotFound",), blob.get_blob_properties))
        return None if found is None else _stat(found)

    def read(self, key: str) -> bytes | None:
        blob = self._blob(key)
        return self._ask(lambda: unless(("BlobNotFound",), lambda: blob.download_blob().readall()))

    def read_range(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        blob = self._blob(key)

        def download() -> bytes:
            data: bytes = blob.download_blob(start, length, **_if_match(etag)).readall()
            return data

        data = self._ask(lambda: unless(("BlobNotFound", "ConditionNotMet", "InvalidRange"), download))
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

    def write_stream(self, key: str, blocks: Iterable[bytes], metadata: Metadata | None = None) -> None:
        self._put(key, blocks, metadata if callable(metadata) else check_metadata(metadata), {})

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
        self._ask(lambda: unless(("BlobNotFound",), blob.delete_blob))

    def _blob(self, key: str) -> BlobClient:
        return self._container.get_blob_client(check_key(key))

    def _ask(self, call: Callable[[], T]) -> T:
        return made_if("ContainerNotFound", self._container.create_container, call)

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
        if isinstance(data, bytes) and len(data) <= BLOCK_BYTES:
            checked = check_metadata(metadata)
            put = partial(blob.upload_blob, data, overwrite=True, metadata=checked, **condition)
        else:
            blocks = list(self._stage(blob, data))
            put = partial(blob.commit_block_list, blocks, metadata=check_metadata(metadata), **condition)
        return self._ask(lambda: unless(refusals, put)) is not None

    def _stage(self, blob: BlobClient, data: bytes | Path | Iterable[bytes]) -> Iterator[BlobBlock]:
        """Upload what a commit then makes visible. A block's id is its number and its hash.

        So the same data have the same ids however they came in blocks, and of two writers with different
        data neither commits a block of the other. What is never committed Azure deletes after a week.
        """
        for number, block in enumerate(_blocks(data)):
            block_id = f"{number:05d}-{hashlib.sha256(block).hexdigest()[:32]}"
            self._ask(partial(blob.stage_block, block_id, block))
            yield BlobBlock(block_id)


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
            while block := stream.read(BLOCK_BYTES):
                yield block
        return
    rest = bytearray()
    for block in [data] if isinstance(data, bytes) else data:
        rest += block
        while len(rest) >= BLOCK_BYTES:
            yield bytes(rest[:BLOCK_BYTES])
            del rest[:BLOCK_BYTES]
    if rest:
        yield bytes(rest)
