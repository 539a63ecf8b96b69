"""OpenAI's /v1/files and /v1/batches over the bulk storage: files are blobs, a batch is a job.

Does not know how a job is worked on. Every batch is a job of its own: to cancel it, or to delete its
output, touches no other batch over the same file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from functions.caller import read_body
from functions.openapi import describe
from functions.uploads import FILE, Upload, store
from shared.bulk import control
from shared.bulk.connection import open_storage
from shared.bulk.storage import BlobStat, Storage
from shared.dialects import openai_batch
from shared.dialects.body import JSON, decode_body
from shared.dialects.openai_batch import FILES, Batch, BatchBody
from shared.errors import InvalidInput
from shared.settings import Settings

UPLOADS = 8
"""Files that one process takes at a time; others wait. Each needs a thread and a few MiB."""

_BINARY = "application/octet-stream"
_RANGE_BYTES = 4 << 20
_MAX_FILES, _MAX_BATCHES, _BATCHES = 10_000, 100, 20


@dataclass(frozen=True, slots=True)
class Route:
    """endpoint: may raise BlitzError, to be told in OpenAI's shape. described: for /openapi.json."""

    method: str
    path: str
    summary: str
    endpoint: Callable[[Request], Awaitable[Response]]
    described: dict[str, Any]


class Batches:
    """The endpoints, over one storage.

    max_file_bytes, max_body_bytes: of an upload and of any other body.
    """

    def __init__(self, storage: Storage, *, max_file_bytes: int, max_body_bytes: int) -> None:
        self._storage = storage
        self._out = storage.out
        self._max_file_bytes = max_file_bytes
        self._max_body_bytes = max_body_bytes
        self._threads = ThreadPoolExecutor(UPLOADS, "upload")

    def routes(self) -> Iterator[Route]:
        file, batch = "/v1/files/{file_id}", "/v1/batches/{batch_id}"
        page = {"after": "string", "limit": "integer"}
        pages = {**page, "order": "string", "purpose": "string"}
        id_, of = describe(JSON, path="file_id"), describe(JSON, path="batch_id")
        form = {"multipart/form-data": _FORM}
        body = {JSON: msgspec.json.schema_components([BatchBody])[1]["BatchBody"]}
        yield Route("POST", "/v1/files", "Upload a file", self.upload, describe(JSON, body=form))
        yield Route("GET", "/v1/files", "The files", self.files, describe(JSON, query=pages))
        yield Route("GET", file, "One file", self.file, id_)
        yield Route("DELETE", file, "Delete a file", self.delete, id_)
        content = describe(_BINARY, path="file_id")
        yield Route("GET", f"{file}/content", "A file's content", self.content, content)
        yield Route(
            "POST", "/v1/batches", "Embed a file of requests", self.create, describe(JSON, body=body)
        )
        yield Route("GET", "/v1/batches", "The batches", self.batches, describe(JSON, query=page))
        yield Route("GET", batch, "One batch", self.batch, of)
        yield Route("POST", f"{batch}/cancel", "Cancel a batch", self.cancel, of)

    async def upload(self, request: Request) -> Response:
        upload = Upload(request, self._max_file_bytes, _check_purpose)
        await upload.begin()
        key = f"{FILES}file-{openai_batch.new_id()}"
        metadata = openai_batch.file_metadata(upload.filename)
        await store(upload, self._out, key, metadata, self._threads)
        return _json(openai_batch.format_file(await self._stat(key)))

    async def files(self, request: Request) -> Response:
        query = openai_batch.read_query(
            dict(request.query_params), default_limit=_MAX_FILES, max_limit=_MAX_FILES
        )
        found = await asyncio.to_thread(lambda: list(self._out.list(FILES)))
        if query.purpose:
            found = [stat for stat in found if openai_batch.purpose_of(stat) == query.purpose]
        # Azure tells whole seconds; within one, newer ids sort first.
        found.sort(key=lambda stat: (-stat.modified_s, stat.key), reverse=query.order == "asc")
        if query.after:
            ids = [openai_batch.file_id_of(stat) for stat in found]
            if query.after not in ids:
                raise InvalidInput("after must be the id of a listed file", field="after")
            found = found[ids.index(query.after) + 1 :]
        page = found[: query.limit]
        return _json(openai_batch.format_files(page, has_more=len(found) > len(page)))

    async def file(self, request: Request) -> Response:
        return _json(openai_batch.format_file(await self._file(request)))

    async def delete(self, request: Request) -> Response:
        stat = await self._file(request)
        await asyncio.to_thread(self._out.delete, stat.key)
        return _json(openai_batch.format_deleted(openai_batch.file_id_of(stat)))

    async def content(self, request: Request) -> Response:
        stat = await self._file(request)
        length = {"content-length": str(stat.size)}
        return StreamingResponse(self._read(stat), headers=length, media_type=_BINARY)

    async def create(self, request: Request) -> Response:
        data = await read_body(request, self._max_body_bytes)
        body = decode_body(data, request.headers.get("content-type", ""), BatchBody)
        openai_batch.check_batch(body)
        field = "input_file_id"
        stat = await self._stat(openai_batch.file_key(body.input_file_id, field=field), field)
        if openai_batch.purpose_of(stat) != "batch":
            raise InvalidInput("that file is the output of a batch: upload one", field=field)
        batch = Batch(
            f"batch_{openai_batch.new_id()}", body.input_file_id, int(time.time()), body.metadata
        )
        key = openai_batch.batch_key(batch.id)
        # In this order, because a job without a record only wastes work, and a record without a job
        # would say for ever that it is being validated.
        await asyncio.to_thread(control.begin_job, self._storage, batch.job, stat.key, stat.etag)
        await asyncio.to_thread(self._out.create, key, msgspec.json.encode(batch))
        return await self._answer(batch)

    async def batches(self, request: Request) -> Response:
        query = openai_batch.read_query(
            dict(request.query_params), default_limit=_BATCHES, max_limit=_MAX_BATCHES
        )
        after = openai_batch.batch_key(query.after) if query.after else ""

        def page() -> list[str]:
            # Ids sort newest first, so that this ends early.
            keys = (stat.key for stat in self._out.list("batches/") if stat.key > after)
            return list(islice(keys, query.limit + 1))

        keys = await asyncio.to_thread(page)
        batches = [await self._record(key) for key in keys[: query.limit]]
        progress = [
            await asyncio.to_thread(control.read_progress, self._out, batch.job) for batch in batches
        ]
        pairs = list(zip(batches, progress, strict=True))
        return _json(openai_batch.format_batches(pairs, has_more=len(keys) > query.limit))

    async def batch(self, request: Request) -> Response:
        return await self._answer(await self._named_batch(request))

    async def cancel(self, request: Request) -> Response:
        """A batch that has ended stays as it is."""
        batch = await self._named_batch(request)
        await asyncio.to_thread(control.cancel_job, self._storage, batch.job)
        return await self._answer(batch)

    async def _file(self, request: Request) -> BlobStat:
        return await self._stat(openai_batch.file_key(request.path_params["file_id"]))

    async def _stat(self, key: str, field: str | None = None) -> BlobStat:
        stat = await asyncio.to_thread(self._out.stat, key)
        if stat is None:
            raise openai_batch.no_file(field)
        return stat

    async def _read(self, stat: BlobStat) -> AsyncIterator[bytes]:
        for start in range(0, stat.size, _RANGE_BYTES):
            yield await asyncio.to_thread(
                self._out.read_range, stat.key, start, _RANGE_BYTES, etag=stat.etag
            )

    async def _named_batch(self, request: Request) -> Batch:
        return await self._record(openai_batch.batch_key(request.path_params["batch_id"]))

    async def _record(self, key: str) -> Batch:
        data = await asyncio.to_thread(self._out.read, key)
        if data is None:
            raise openai_batch.no_batch()
        return msgspec.json.decode(data, type=Batch)

    async def _answer(self, batch: Batch) -> Response:
        progress = await asyncio.to_thread(control.read_progress, self._out, batch.job)
        return _json(openai_batch.format_batch(batch, progress))


def connect(settings: Settings) -> Batches:
    """Over the settings' bulk storage. Raises Misconfigured; does not connect yet."""
    return Batches(
        open_storage(settings),
        max_file_bytes=settings.max_file_bytes,
        max_body_bytes=settings.max_body_bytes,
    )


_FORM = {
    "type": "object",
    "required": [FILE, "purpose"],
    "properties": {
        FILE: {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["batch"]},
    },
}


def _check_purpose(fields: Mapping[str, str]) -> None:
    if fields.get("purpose") != "batch":
        raise InvalidInput("purpose must be batch", field="purpose")


def _json(content: bytes) -> Response:
    return Response(content, media_type=JSON)
