"""Uploads and downloads that mean harm: forms, senders and readers that stop, too many at once."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import count, repeat
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import zstandard
from msgspec.structs import replace
from starlette.types import Message

from functions.api import batches
from shared.errors import SourceChanged
from shared.storage.blobs import Blobs, Storage
from tests.fakes.storage import Recording
from tests.functions.api.forms import (
    BEGUN,
    BOUNDARY,
    END,
    FILE,
    FORM,
    LINE,
    PURPOSE,
    Caller,
    batches_app,
    batches_client,
    part,
    upload,
)

pytestmark = pytest.mark.anyio
KEYS = ("key-of-a-first-caller", "key-of-another-caller")
HASHES = tuple(hashlib.sha256(key.encode()).hexdigest() for key in KEYS)
PIECE = 32 << 10
ENDLESS = PIECE << 10
"""32 MiB, of which no more than some pieces may be asked for."""


def endless(begin: bytes, again: bytes) -> Iterator[bytes]:
    """`begin`, and then `again` for 32 MiB, in pieces."""
    block = again * (PIECE // len(again) + 1)
    yield begin
    yield from repeat(block, ENDLESS // len(block))


def leftovers(folder: Path) -> list[Path]:
    """Everything that is stored, half-written files too."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


OPEN = PURPOSE + FILE
NAMED = b"--%b\r\nContent-Disposition: form-data; name=" % BOUNDARY.encode()
HOSTILE = {
    "empty parts": (b"", b"--%b\r\n\r\n\r\n" % BOUNDARY.encode()),
    "empty fields": (b"", part("x", b"")),
    "fields": (b"", part("x", b"y" * 1000)),
    "parts after the file": (OPEN, part("x", b"")),
    "a preamble": (b"", b"\r\n"),
    "an epilogue": (OPEN + END, b"x"),
    "an epilogue of line ends": (OPEN + END, b"\r\n"),
    "a field": (NAMED + b'"x"\r\n\r\n', b"y"),
    "a header's name": (b"--%b\r\n" % BOUNDARY.encode(), b"x"),
    "a header's value": (NAMED + b'"', b"x"),
    "headers": (NAMED + b'"x"\r\n', b"a: b\r\n"),
    "a file's name": (NAMED + b'"file"; filename="', b"x"),
    "a file's name in escapes": (NAMED + b"\"file\"; filename*=utf-8''", b"%00"),
    "options of a header": (NAMED + b'"file"', b"; a=b"),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_form_is_read_no_further_than_it_may_be(
    storage: Storage, tmp_path: Path, kind: str
) -> None:
    """All that is not the file has 64 KiB: 400 after some pieces of it, not after megabytes."""
    asked = count()
    messages: Iterator[Message] = (
        {"type": "http.request", "body": body, "more_body": bool(next(asked) + 1)}
        for body in endless(*HOSTILE[kind])
    )
    caller = Caller(more=messages)
    await caller.run(batches_app(storage))
    assert caller.sent[0]["status"] == 400
    assert next(asked) <= 6  # 5 of 32 KiB are more than 64, with what a parser may look ahead
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        b"\r\n--" + BOUNDARY.encode()[:-1] + b"\r\n",
        b"\r\n" * 1000,
        b"\r\n--" * 500,
        b"--" + BOUNDARY.encode() + b"--",
        b"\r" * 1000,
        bytes(range(256)),
    ],
)
async def test_a_file_that_looks_like_a_boundary_is_a_file(storage: Storage, content: bytes) -> None:
    """Byte for byte, however it is cut."""
    content = b"x" + content * 3 + b"\n"
    body = PURPOSE + part("file", content, "a.jsonl") + END
    async with batches_client(storage) as client:
        for size in (1, 13, len(body)):

            async def pieces(size: int = size) -> Any:
                for start in range(0, len(body), size):
                    yield body[start : start + size]

            made = await client.post("/v1/files", content=pieces(), headers=FORM)
            assert made.status_code == 200, made.text
            stored = await client.get(f"/v1/files/{made.json()['id']}/content")
            assert stored.content == content


@pytest.mark.parametrize(
    ("boundary", "status"), [("", 415), ('""', 415), ("x" * 257, 400), ("x" * 70, 400)]
)
async def test_boundaries_have_a_length(storage: Storage, boundary: str, status: int) -> None:
    """One that cannot be is refused; the last one here is fine, and its body is not."""
    async with batches_client(storage) as client:
        kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
        response = await client.post("/v1/files", content=OPEN + END, headers=kind)
    assert response.status_code == status


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ("../../etc/passwd", "../../etc/passwd"),
        ("a\x00b\x1b[31m\x7f.jsonl", "a\x00b\x1b[31m\x7f.jsonl"),
        ("Anfragen für 日本.jsonl", "Anfragen für 日本.jsonl"),
        ("🙂" * 300, "🙂" * 255),
        ("", "file"),
        ("x" * 3000, "x" * 255),
    ],
)
async def test_any_name_is_told_as_it_came_and_names_no_blob(
    storage: Storage, sent: str, told: str
) -> None:
    """Its first 255 characters, percent-encoded in the metadata: ASCII, and far below 8 KiB."""
    async with batches_client(storage) as client:
        body = PURPOSE + part("file", LINE, "NAME").replace(b"NAME", sent.encode()) + END
        made = (await client.post("/v1/files", content=body, headers=FORM)).json()
    assert made["filename"] == told
    [stat] = storage.out.list("")
    assert stat.key == f"files/{made['id']}"
    assert sum(map(len, stat.metadata.values())) < 4096


async def test_a_body_given_whole_is_stored_in_blocks(storage: Storage) -> None:
    """As the Functions host gives it: no second copy of it in memory."""
    recording = Recording(storage.out)
    content = LINE * (20_000_000 // len(LINE))
    body = PURPOSE + part("file", content, "a.jsonl") + END
    async with batches_client(replace(storage, out=cast(Blobs, recording))) as client:
        response = await client.post("/v1/files", content=body, headers=FORM)
    assert response.status_code == 200
    assert sum(recording.sizes) == len(content)
    assert max(recording.sizes) < 1_200_000


def packed_with_skippable_frame() -> bytes:
    return b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + zstandard.compress(LINE)


@pytest.mark.parametrize(
    "content",
    [gzip.compress(LINE), zstandard.compress(LINE), packed_with_skippable_frame()],
    ids=["gzip", "zstd", "pzstd"],
)
async def test_a_packed_file_is_refused(storage: Storage, tmp_path: Path, content: bytes) -> None:
    """OpenAI takes none: whose size is limited is what will be read."""
    async with batches_client(storage) as client:
        body = PURPOSE + part("file", content, "a.jsonl") + END
        response = await client.post("/v1/files", content=body, headers=FORM)
    assert response.status_code == 400
    assert "send it uncompressed" in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "file"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "begun",
    [
        {"type": "http.request", "body": b"", "more_body": True},
        {"type": "http.request", "body": PURPOSE[:-5], "more_body": True},
        BEGUN,
    ],
    ids=["nothing", "half a field", "half a file"],
)
async def test_a_sender_that_stops_is_ended(storage: Storage, tmp_path: Path, begun: Message) -> None:
    """408, the connection is closed, nothing is left, and the next is taken."""
    app = batches_app(storage, grace_s=0.05)
    for _ in range(batches.UPLOADS + 1):
        caller = Caller(begun)
        await asyncio.wait_for(caller.run(app), 20)
        assert caller.sent[0]["status"] == 408
        assert caller.headers[b"connection"] == b"close"
        assert b"request_timeout" in caller.sent[1]["body"]
    assert leftovers(tmp_path) == []


async def test_the_ninth_upload_is_told_at_once_to_come_again(storage: Storage, tmp_path: Path) -> None:
    """429 with Retry-After, while eight have not ended; when one has, there is room."""
    app = batches_app(storage)
    callers = [Caller(BEGUN) for _ in range(batches.UPLOADS)]
    running = [asyncio.create_task(caller.run(app)) for caller in callers]
    for caller in callers:
        await asyncio.wait_for(caller.waits.wait(), 20)
    ninth = Caller({"type": "http.request", "body": PURPOSE + FILE + END, "more_body": False})
    await asyncio.wait_for(ninth.run(app), 20)
    assert ninth.sent[0]["status"] == 429
    assert ninth.headers[b"retry-after"] == b"1"
    callers[0].more.set_result({"type": "http.disconnect"})
    await running[0]
    tenth = Caller({"type": "http.request", "body": PURPOSE + FILE + END, "more_body": False})
    await tenth.run(app)
    assert tenth.sent[0]["status"] == 200
    for caller in callers[1:]:
        caller.more.set_result({"type": "http.disconnect"})
    await asyncio.gather(*running)
    assert len(leftovers(tmp_path)) == 2  # the tenth's, with its metadata


async def test_one_keys_slow_uploads_leave_room_for_anothers(storage: Storage) -> None:
    """Half of all are one key's at most."""
    app = batches_app(storage, api_key_hashes=HASHES)
    callers = [Caller(BEGUN, key=KEYS[0]) for _ in range(batches.UPLOADS // 2)]
    running = [asyncio.create_task(caller.run(app)) for caller in callers]
    for caller in callers:
        await asyncio.wait_for(caller.waits.wait(), 20)
    for key, status in ((KEYS[0], 429), (KEYS[1], 200)):
        body = {"type": "http.request", "body": PURPOSE + FILE + END, "more_body": False}
        caller = Caller(body, key=key)
        await asyncio.wait_for(caller.run(app), 20)
        assert caller.sent[0]["status"] == status
    for caller in callers:
        caller.more.set_result({"type": "http.disconnect"})
    await asyncio.gather(*running)


class Ranges(Recording):
    """And the lengths of the ranges that were read."""

    def read_range(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        data = self._blobs.read_range(key, start, length, etag=etag)
        self.sizes.append(len(data))
        return data


async def test_a_reader_that_stalls_holds_one_range_and_a_slot(storage: Storage) -> None:
    """However large the file is; the slot is free when it has left, whenever that is."""
    ranges = Ranges(storage.out)
    app = batches_app(replace(storage, out=cast(Blobs, ranges)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r") as client:
        path = f"/v1/files/{await upload(client, b'x' * 8_000_000)}/content"
        ranges.sizes.clear()
        stalled = [Caller(taken=n % 2) for n in range(batches.DOWNLOADS)]
        running = [asyncio.create_task(caller.run(app, "GET", path)) for caller in stalled]
        for caller in stalled:
            await asyncio.wait_for(caller.stalled.wait(), 20)
        assert len(ranges.sizes) <= batches.DOWNLOADS
        assert set(ranges.sizes) == {1 << 20}
        response = await client.get(path)
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        for task in running:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        response = await client.get(path)
        assert (response.status_code, len(response.content)) == (200, 8_000_000)


async def test_a_file_that_is_deleted_while_it_is_read_breaks_off(storage: Storage) -> None:
    """It does not end as if that were all: a client sees fewer bytes than were announced."""

    class Deleting(Ranges):
        def read_range(self, key: str, start: int, length: int, *, etag: str) -> bytes:
            if len(self.sizes) == 2:
                self._blobs.delete(key)
            return super().read_range(key, start, length, etag=etag)

    deleting = Deleting(storage.out)
    app = batches_app(replace(storage, out=cast(Blobs, deleting)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r") as client:
        file_id = await upload(client, b"x" * 8_000_000)
    deleting.sizes.clear()
    caller = Caller()
    with pytest.raises(SourceChanged):
        await caller.run(app, "GET", f"/v1/files/{file_id}/content")
    assert caller.headers[b"content-length"] == b"8000000"
    assert sum(len(message.get("body", b"")) for message in caller.sent) == 2 << 20
    assert all(message.get("more_body", True) for message in caller.sent)


@pytest.mark.parametrize("taken", [1, 2, 10])
async def test_a_reader_that_stops_is_cut_off(storage: Storage, taken: int) -> None:
    """The answer ends without its last bytes, and its slot is free."""
    app = batches_app(storage, grace_s=0.05)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r") as client:
        path = f"/v1/files/{await upload(client, b'x' * 2_000_000)}/content"
        for _ in range(batches.DOWNLOADS + 1):
            caller = Caller(taken=taken)
            await asyncio.wait_for(caller.run(app, "GET", path), 20)
            assert caller.sent[0]["status"] == 200
            assert len(caller.sent) == taken
            assert all(message.get("more_body", True) for message in caller.sent)


async def test_a_form_with_a_content_encoding_is_refused_by_name(storage: Storage) -> None:
    """It would be read as a broken form; identity is no encoding."""
    async with batches_client(storage) as client:
        form = PURPOSE + FILE + END
        codings = ("gzip", "zstd", "br", "identity")
        answers = [
            await client.post("/v1/files", content=form, headers={**FORM, "content-encoding": coding})
            for coding in codings
        ]
    assert [answer.status_code for answer in answers] == [415, 415, 415, 200]
    assert "Content-Encoding" in answers[0].json()["error"]["message"]
