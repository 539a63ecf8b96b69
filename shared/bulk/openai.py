"""OpenAI's files and batches: bodies to what is asked, blobs and jobs to bodies.

Does not know HTTP, storage, or how a batch is worked on. Shapes:
https://platform.openai.com/docs/api-reference/files and /batch
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

import msgspec
import orjson

from shared.bulk.control import Progress
from shared.bulk.inputs.batch import URLS
from shared.bulk.jobs import Counts, Status
from shared.bulk.options import PREFIX
from shared.bulk.steps.expiry import expires_at, expiring
from shared.errors import InvalidInput, NotFound
from shared.storage.blobs import BlobStat

_FILE_ID = re.compile(r"file-[0-9a-f]{24}(-output|-errors)?")
_BATCH_ID = re.compile(r"batch_[0-9a-f]{24}")
_WINDOW = "24h"
_MAX_NAME_CHARS = 255
_EXPIRY = re.compile(r"expires_after\[(\w+)\]")
_MAX_PAIRS, _MAX_KEY_CHARS, _MAX_VALUE_CHARS = 16, 64, 512


class ExpiresAfter(msgspec.Struct, frozen=True):
    """When a file is to expire: so many seconds after it was made, from an hour to 30 days."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, msgspec.Meta(ge=3600, le=2_592_000)]


class BatchBody(msgspec.Struct, frozen=True):
    """POST /v1/batches. Unknown fields are ignored."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchRecord(msgspec.Struct, frozen=True):
    """A batch as it was created. Times are Unix seconds.

    expires_at: when it is forgotten; None: never. endpoint: one of URLS, told again as it was given.
    """

    id: str
    input_file_id: str
    created_at: int
    metadata: dict[str, str] | None = None
    expires_at: int | None = None
    endpoint: str = URLS[0]

    @property
    def job(self) -> str:
        """The id of its job."""
        return self.id.removeprefix("batch_")


class ListQuery(msgspec.Struct, frozen=True):
    """What pages of files and batches are asked for with. limit: 0 for the default."""

    after: str = ""
    limit: int = 0
    order: Literal["asc", "desc"] = "desc"
    purpose: str = ""


def new_id() -> str:
    """24 hex digits; newer ones sort before older ones, so that a listing begins with the newest."""
    return f"{2**48 - 1 - time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"


def check_batch(body: BatchBody) -> None:
    """Raises InvalidInput naming the field."""
    if body.endpoint not in URLS:
        raise InvalidInput(f"endpoint must be {' or '.join(URLS)}", field="endpoint")
    if body.completion_window != _WINDOW:
        raise InvalidInput(f"completion_window must be {_WINDOW}", field="completion_window")
    pairs = body.metadata or {}
    if (
        len(pairs) > _MAX_PAIRS
        or any(len(key) > _MAX_KEY_CHARS for key in pairs)
        or any(len(value) > _MAX_VALUE_CHARS for value in pairs.values())
    ):
        raise InvalidInput(
            f"metadata has at most {_MAX_PAIRS} pairs, keys of at most {_MAX_KEY_CHARS} characters and "
            f"values of at most {_MAX_VALUE_CHARS}",
            field="metadata",
        )


def read_query(query: dict[str, str], *, default_limit: int, max_limit: int) -> ListQuery:
    """Raises InvalidInput naming the parameter."""
    try:
        read = msgspec.convert(query, ListQuery, strict=False)
    except msgspec.ValidationError as error:
        field = next((name for name in ("limit", "order") if f"$.{name}" in str(error)), None)
        raise InvalidInput(
            f"limit must be a whole number from 1 to {max_limit}, order must be asc or desc", field=field
        ) from None
    if "limit" not in query:
        return msgspec.structs.replace(read, limit=default_limit)
    if not 1 <= read.limit <= max_limit:
        raise InvalidInput(f"limit must be from 1 to {max_limit}", field="limit")
    return read


def read_expiry(fields: Mapping[str, str]) -> int | None:
    """Seconds, from an upload's form; None: not stated. Raises InvalidInput."""
    given = {found[1]: value for name, value in fields.items() if (found := _EXPIRY.fullmatch(name))}
    if not given:
        return None
    try:
        return msgspec.convert(given, ExpiresAfter, strict=False).seconds
    except msgspec.ValidationError:
        raise InvalidInput(
            "expires_after must have anchor, which is created_at, and seconds, from 3600 to 2592000",
            field="expires_after",
        ) from None


def files_of(owner: str) -> str:
    """Where an owner's files lie, as those of their batches; "" is nobody in particular."""
    return f"files/{owner}/" if owner else "files/"


def batches_of(owner: str) -> str:
    """Where the records of an owner's batches lie."""
    return f"batches/{owner}/" if owner else "batches/"


def check_file_id(file_id: str, field: str | None = None) -> str:
    """The id itself. Raises NotFound for what cannot be one."""
    if not _FILE_ID.fullmatch(file_id):
        raise no_file(field)
    return file_id


def check_batch_id(batch_id: str) -> str:
    """The id itself. Raises NotFound for what cannot be one."""
    if not _BATCH_ID.fullmatch(batch_id):
        raise no_batch()
    return batch_id


def no_file(field: str | None = None) -> NotFound:
    """The error for an unknown file, or for another caller's."""
    return NotFound("there is no file of that id", field=field)


def no_batch() -> NotFound:
    """The error for an unknown batch, or for another caller's."""
    return NotFound("there is no batch of that id")


def file_metadata(filename: str, keep_s: int) -> dict[str, str]:
    """Of an uploaded file's blob: its name, that its lines are requests, and when it expires."""
    name = quote(filename[:_MAX_NAME_CHARS] or "file")
    return {"filename": name, f"{PREFIX}kind": "batch", **expiring(keep_s)}


def file_id_of(stat: BlobStat) -> str:
    """The id is the last segment of the blob's key."""
    return stat.key.rpartition("/")[2]


def purpose_of(stat: BlobStat) -> str:
    """What was uploaded has a file name in its metadata; what a batch wrote has none."""
    return "batch" if "filename" in stat.metadata else "batch_output"


def format_file(stat: BlobStat) -> bytes:
    """JSON of a file object."""
    return orjson.dumps(_file(stat))


def format_deleted(file_id: str) -> bytes:
    """JSON that says that a file is deleted."""
    return orjson.dumps({"id": file_id, "object": "file", "deleted": True})


def format_files(stats: Sequence[BlobStat], *, has_more: bool) -> bytes:
    """JSON list of file objects. has_more: whether there is a next page."""
    return _list([_file(stat) for stat in stats], has_more)


def format_batch(batch: BatchRecord, progress: Progress) -> bytes:
    """JSON of a batch object."""
    return orjson.dumps(_batch(batch, progress))


def format_batches(batches: Sequence[tuple[BatchRecord, Progress]], *, has_more: bool) -> bytes:
    """JSON list of batch objects. has_more: whether there is a next page."""
    return _list([_batch(batch, progress) for batch, progress in batches], has_more)


def _file(stat: BlobStat) -> dict[str, Any]:
    file_id = file_id_of(stat)
    return {
        "id": file_id,
        "object": "file",
        "bytes": stat.size,
        "created_at": int(stat.modified_s),
        "expires_at": expires_at(stat),
        "filename": unquote(stat.metadata.get("filename", f"{file_id}.jsonl")),
        "purpose": purpose_of(stat),
        "status": "processed",
        "status_details": None,
    }


def _batch(batch: BatchRecord, progress: Progress) -> dict[str, Any]:
    status = progress.status
    state = status.status if status else "cancelling" if progress.cancelling_at else "validating"
    counts = status.request_counts if status else Counts()
    ended_at = status.ended_at if status else None
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": status.model if status else None,
        "errors": _errors(status),
        "input_file_id": batch.input_file_id,
        "completion_window": _WINDOW,
        "status": state,
        "output_file_id": _file_id(status.output) if status else None,
        "error_file_id": _file_id(status.errors) if status else None,
        "created_at": batch.created_at,
        "in_progress_at": progress.in_progress_at,
        "expires_at": batch.expires_at,
        "finalizing_at": progress.finalizing_at,
        "completed_at": ended_at if state == "completed" else None,
        "failed_at": ended_at if state == "failed" else None,
        "expired_at": None,  # one that takes longer than its window goes on
        "cancelling_at": progress.cancelling_at,
        "cancelled_at": ended_at if state == "cancelled" else None,
        "request_counts": msgspec.to_builtins(counts),
        "usage": None if progress.tokens is None else _usage(progress.tokens),
        "metadata": batch.metadata,
    }


def _errors(status: Status | None) -> dict[str, Any] | None:
    if status is None or status.error is None:
        return None
    error = {"code": status.code, "message": status.error, "param": status.field, "line": None}
    return {"object": "list", "data": [error]}


def _usage(tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens,
    }


def _file_id(key: str | None) -> str | None:
    return key.rpartition("/")[2] if key else None


def _list(items: list[dict[str, Any]], has_more: bool) -> bytes:
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {}
    none = {"first_id": None, "last_id": None}
    return orjson.dumps({"object": "list", "data": items, "has_more": has_more, **none, **ends})
