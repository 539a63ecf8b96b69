"""OpenAI's /v1/files and /v1/batches over the bulk storage: files are blobs, a batch is a job.

Every batch is a job of its own: cancelling it or deleting its output affects no other batch over the
same file. Does not know how a job runs; ownership of files is in functions.api.owned.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from functions.api.auth import owner_of
from functions.api.downloads import BINARY, Download
from functions.api.openapi import describe
from functions.api.owned import Owned, Quota
from functions.api.slots import Slots
from functions.api.uploads import FILE, Upload, store
from functions.http.caller import read_body
from functions.http.pace import PAUSE_S
from shared.bulk import control, openai
from shared.bulk.openai import BatchBody, BatchRecord
from shared.bulk.steps.expiry import expiring
from shared.dialects.body import JSON, decode_body
from shared.errors import InvalidInput, StoreUnavailable
from shared.settings import Settings
from shared.storage.blobs import BlobStat, Storage
from shared.storage.connect import open_storage

UPLOADS, DOWNLOADS = 8, 32
"""Concurrent uploads and downloads of a process; more get 429. An upload needs a thread and a few MiB, a
download one range, however slowly its caller reads."""

PREFIXES = ("/v1", "/openai/v1", "/openai")
"""Of paths: OpenAI's and Azure OpenAI's."""

_log = logging.getLogger(__name__)

_RANGE_BYTES = 1 << 20
_LINKED_BYTES = 8 << 20
"""Of a file that is worth a second request: Functions holds what it answers whole in memory."""
_WINDOW_S = 86_400
_MAX_FILES, _MAX_BATCHES, _BATCHES = 10_000, 100, 20


class Route(msgspec.Struct, frozen=True):
    """endpoint: may raise BlitzError, formatted in OpenAI's shape. described: for /openapi.json."""

    method: str
    path: str
    summary: str
    endpoint: Callable[[Request], Awaitable[Response]]
    described: dict[str, Any]


class Batches:
    """The endpoints, over one storage. For one event loop.

    clock: Unix seconds. grace_s: longest pause of an upload's sender and of a download's receiver.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        grace_s: float = PAUSE_S,
    ) -> None:
        self._storage = storage
        self._out = storage.out
        self._has_links = settings.link_downloads
        self._max_file_bytes = settings.max_file_bytes
        self._max_body_bytes = settings.max_body_bytes
        self._keep_s = round(settings.file_expiry_days * 86_400)
        self._quota = Quota(settings.key_files, settings.key_file_bytes, settings.key_batches)
        self._clock = clock
        self._grace_s = grace_s
        self._threads = ThreadPoolExecutor(UPLOADS, "upload")
        self._uploads = Slots(UPLOADS, "uploads")
        self._downloads = Slots(DOWNLOADS, "downloads")

    def routes(self) -> Iterator[Route]:
        """At OpenAI's paths and at Azure OpenAI's, with a version in them and without."""
        for prefix in PREFIXES:
            yield from self._routes(f"{prefix}/files", f"{prefix}/batches")

    def _routes(self, files: str, batches: str) -> Iterator[Route]:
        file, batch = f"{files}/{{file_id}}", f"{batches}/{{batch_id}}"
        page = {"after": "string", "limit": "integer"}
        pages = {**page, "order": "string", "purpose": "string"}
        id_, of = describe(JSON, path="file_id"), describe(JSON, path="batch_id")
        form = {"multipart/form-data": _FORM}
        body = {JSON: msgspec.json.schema_components([BatchBody])[1]["BatchBody"]}
        content = describe(BINARY, path="file_id")
        embed = describe(JSON, body=body)
        yield Route("POST", files, "Upload a file", self.upload, describe(JSON, body=form))
        yield Route("GET", files, "List files", self.files, describe(JSON, query=pages))
        yield Route("GET", file, "One file", self.file, id_)
        yield Route("DELETE", file, "Delete a file", self.delete, id_)
        yield Route("GET", f"{file}/content", "A file's content", self.content, content)
        yield Route("POST", batches, "Embed a file of requests", self.create, embed)
        yield Route("GET", batches, "List batches", self.batches, describe(JSON, query=page))
        yield Route("GET", batch, "One batch", self.batch, of)
        yield Route("POST", f"{batch}/cancel", "Cancel a batch", self.cancel, of)

    async def upload(self, request: Request) -> Response:
        """POST /v1/files."""
        upload = Upload(request, self._max_file_bytes, _check_form, self._grace_s)
        with self._uploads.acquired(owner_of(request.scope)):
            owned = self._owned(request)
            free = await asyncio.to_thread(owned.free_bytes)
            upload.limit(free, owned.too_many_bytes(free))
            await upload.begin()
            key = owned.new_file_key()

            def metadata() -> dict[str, str]:
                # The form may state the expiry after the file.
                stated_s = openai.read_expiry(upload.fields)
                keep_s = self._keep_s if stated_s is None else stated_s
                return openai.file_metadata(upload.filename, keep_s)

            await store(upload, self._out, key, metadata, self._threads)
        stat = await asyncio.to_thread(self._out.stat, key)
        if stat is None:
            raise openai.no_file()
        return _json(openai.format_file(stat))

    async def files(self, request: Request) -> Response:
        """GET /v1/files: a page of the caller's files."""
        query = openai.read_query(
            dict(request.query_params), default_limit=_MAX_FILES, max_limit=_MAX_FILES
        )
        found = await asyncio.to_thread(self._owned(request).files)
        if query.purpose:
            found = [stat for stat in found if openai.purpose_of(stat) == query.purpose]
        # Azure reports whole seconds; within one, newer ids sort first.
        found.sort(key=lambda stat: (-stat.modified_s, stat.key), reverse=query.order == "asc")
        if query.after:
            ids = [openai.file_id_of(stat) for stat in found]
            if query.after not in ids:
                raise InvalidInput("after must be the id of a listed file", field="after")
            found = found[ids.index(query.after) + 1 :]
        page = found[: query.limit]
        return _json(openai.format_files(page, has_more=len(found) > len(page)))

    async def file(self, request: Request) -> Response:
        """GET /v1/files/{id}."""
        return _json(openai.format_file(await self._file(request)))

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/files/{id}."""
        stat = await self._file(request)
        await asyncio.to_thread(self._out.delete, stat.key)
        return _json(openai.format_deleted(openai.file_id_of(stat)))

    async def content(self, request: Request) -> Response:
        """GET /v1/files/{id}/content."""
        stat = await self._file(request)
        if stat.size > _LINKED_BYTES and (link := await self._link(stat)):
            return RedirectResponse(link, 302, {"cache-control": "no-store"})
        owner = owner_of(request.scope)
        return Download(self._read(stat), stat.size, self._downloads, owner, self._grace_s)

    async def create(self, request: Request) -> Response:
        """POST /v1/batches: a job over an uploaded file."""
        owned = self._owned(request)
        await asyncio.to_thread(owned.check_new_batch)
        data = await read_body(request, self._max_body_bytes)
        body = decode_body(data, request.headers.get("content-type", ""), BatchBody)
        openai.check_batch(body)
        field = "input_file_id"
        stat = await asyncio.to_thread(owned.file, body.input_file_id, field)
        if openai.purpose_of(stat) != "batch":
            raise InvalidInput("that file is the output of a batch: name an uploaded file", field=field)
        stated = body.output_expires_after
        keep_s = stated.seconds if stated else self._keep_s
        # The output expires before the batch's record, unless the batch outlasts its window.
        record_s = _WINDOW_S + max(keep_s, self._keep_s) if self._keep_s else 0
        now = int(self._clock())
        batch = BatchRecord(
            f"batch_{openai.new_id()}",
            body.input_file_id,
            now,
            body.metadata,
            expires_at=now + record_s if record_s else None,
            endpoint=body.endpoint,
        )
        # In this order: a job without a record only wastes work; a record without a job would show
        # "validating" for ever.
        await asyncio.to_thread(control.begin_job, self._storage, batch.job, stat.key, stat.etag, keep_s)
        await asyncio.to_thread(owned.add, batch, expiring(record_s))
        return await self._answer(batch)

    async def batches(self, request: Request) -> Response:
        """GET /v1/batches: a page of the caller's batches."""
        query = openai.read_query(
            dict(request.query_params), default_limit=_BATCHES, max_limit=_MAX_BATCHES
        )
        found = await asyncio.to_thread(self._owned(request).batches, query.after, query.limit + 1)
        pairs = [
            (batch, await asyncio.to_thread(control.read_progress, self._out, batch.job))
            for batch in found[: query.limit]
        ]
        return _json(openai.format_batches(pairs, has_more=len(found) > query.limit))

    async def batch(self, request: Request) -> Response:
        """GET /v1/batches/{id}."""
        return await self._answer(await self._named_batch(request))

    async def cancel(self, request: Request) -> Response:
        """Cancel a batch. One that has ended stays as it is."""
        batch = await self._named_batch(request)
        await asyncio.to_thread(control.cancel_job, self._storage, batch.job)
        return await self._answer(batch)

    def _owned(self, request: Request) -> Owned:
        return Owned(self._out, owner_of(request.scope), self._quota, self._clock)

    async def _file(self, request: Request) -> BlobStat:
        return await asyncio.to_thread(self._owned(request).file, request.path_params["file_id"])

    async def _read(self, stat: BlobStat) -> AsyncIterator[bytes]:
        for start in range(0, stat.size, _RANGE_BYTES):
            yield await asyncio.to_thread(
                self._out.read_range, stat.key, start, _RANGE_BYTES, etag=stat.etag
            )

    async def _link(self, stat: BlobStat) -> str | None:
        """None where the storage gives none, or refuses: then the file goes through this process."""
        if self._storage.link is None or not self._has_links:
            return None
        try:
            return await asyncio.to_thread(self._storage.link, stat.key)
        except StoreUnavailable as error:
            _log.warning("no link to a file, which is streamed instead: %s", error)
            return None

    async def _named_batch(self, request: Request) -> BatchRecord:
        return await asyncio.to_thread(self._owned(request).batch, request.path_params["batch_id"])

    async def _answer(self, batch: BatchRecord) -> Response:
        progress = await asyncio.to_thread(control.read_progress, self._out, batch.job)
        return _json(openai.format_batch(batch, progress))


def connect(settings: Settings) -> Batches:
    """Batches over the bulk storage of the settings. Raises Misconfigured; does not connect yet."""
    return Batches(open_storage(settings), settings)


_FORM = {
    "type": "object",
    "required": [FILE, "purpose"],
    "properties": {
        FILE: {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["batch"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
}


def _check_form(fields: Mapping[str, str], complete: bool) -> None:
    if (complete or "purpose" in fields) and fields.get("purpose") != "batch":
        raise InvalidInput("purpose must be batch", field="purpose")
    if complete:
        openai.read_expiry(fields)


def _json(content: bytes) -> Response:
    return Response(content, media_type=JSON)
