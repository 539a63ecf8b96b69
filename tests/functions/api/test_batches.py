"""/v1/files and /v1/batches without the SDK: bodies as they come, refusals, what must not be left."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from msgspec.structs import replace

from functions.api import batches
from shared.bulk.steps.upkeep import MISSED_S
from shared.errors import StoreUnavailable, Unavailable
from shared.storage.blobs import Blobs, Storage
from tests.fakes.storage import Recording
from tests.functions.api.forms import (
    BEGUN,
    END,
    FILE,
    FORM,
    LINE,
    PURPOSE,
    Caller,
    batch_of,
    batches_app,
    batches_client,
    bulk_of,
    drain,
    part,
    take,
    upload,
)
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("order", [(PURPOSE, FILE), (FILE, PURPOSE)], ids=["first", "last"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_a_body_may_come_in_any_pieces_and_order(
    storage: Storage, order: tuple[bytes, bytes], size: int
) -> None:
    """Cut within headers and boundaries, the purpose before the file or after it."""
    body = b"".join(order) + END

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    async with batches_client(storage) as client:
        made = (await client.post("/v1/files", content=pieces(), headers=FORM)).json()
        assert (made["filename"], made["bytes"]) == ("a.jsonl", len(LINE))
        content = await client.get(f"/v1/files/{made['id']}/content")
    assert content.content == LINE
    assert content.headers["content-length"] == str(len(LINE))


async def test_a_large_file_is_never_whole_in_memory(storage: Storage) -> None:
    """Both ways: blocks of a megabyte or so go to the storage, ranges come from it."""
    recording = Recording(storage.out)
    watched = replace(storage, out=cast(Blobs, recording))
    content = LINE * (20_000_000 // len(LINE))
    body = PURPOSE + part("file", content, "a.jsonl") + END

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    async with batches_client(watched) as client:
        made = (await client.post("/v1/files", content=pieces(), headers=FORM)).json()
        assert sum(recording.sizes) == len(content)
        assert max(recording.sizes) < 1_200_000
        async with client.stream("GET", f"/v1/files/{made['id']}/content") as response:
            digest = hashlib.sha256()
            async for block in response.aiter_raw():
                digest.update(block)
    assert digest.digest() == hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    ("size", "settings", "refusal", "is_linked"),
    [
        pytest.param(9 << 20, {"link_downloads": True}, None, True, id="large"),
        pytest.param(1 << 20, {"link_downloads": True}, None, False, id="small"),
        pytest.param(9 << 20, {}, None, False, id="off"),
        pytest.param(9 << 20, {"link_downloads": True}, StoreUnavailable("no"), False, id="refused"),
    ],
)
async def test_a_large_file_is_fetched_from_the_storage_itself(
    storage: Storage, size: int, settings: dict[str, bool], refusal: Exception | None, is_linked: bool
) -> None:
    """By a link that nobody keeps; where there is none, it comes through this process as ever."""

    def link(key: str) -> str:
        if refusal is not None:
            raise refusal
        return f"https://account/{key}?sig=s"

    linking = replace(storage, link=link)
    content = LINE * (size // len(LINE) + 1)
    async with batches_client(linking, **settings) as client:
        form = PURPOSE + part("file", content, "a.jsonl") + END
        made = (await client.post("/v1/files", content=form, headers=FORM)).json()
        response = await client.get(f"/v1/files/{made['id']}/content")
    if is_linked:
        assert response.status_code == 302
        assert response.headers["location"].startswith("https://account/")
        assert response.headers["cache-control"] == "no-store"
        assert response.content == b""
    else:
        assert response.status_code == 200
        assert response.content == content


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (PURPOSE + END, 400, "file"),
        (FILE + END, 400, "purpose"),
        (part("purpose", b"vision") + FILE + END, 400, "purpose"),
        (FILE + part("purpose", b"vision") + END, 400, "purpose"),
        (PURPOSE + FILE + FILE + END, 400, "file"),
        (PURPOSE + part("file", b"", "a.jsonl") + END, 400, "file"),
        (PURPOSE + FILE, 400, None),
        (PURPOSE + FILE[:-20], 400, None),
        (b"no form at all", 400, None),
        (b"", 400, None),
        (part("purpose", b"x" * 66_500) + FILE + END, 400, None),
        (PURPOSE + part("file", b"x" * 2001, "a.jsonl") + END, 413, "file"),
        (PURPOSE + part("file", b"x" * 90_000, "a.jsonl") + END, 413, "file"),
    ],
)
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
async def test_a_wrong_upload_is_refused_and_leaves_nothing(
    storage: Storage, body: bytes, status: int, param: str | None, announced: bool
) -> None:
    """In OpenAI's shape, with the parameter; no blob, and no partial one that is listed."""

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    async with batches_client(storage, max_file_bytes=2000) as client:
        content = body if announced else pieces()
        response = await client.post("/v1/files", content=content, headers=FORM)
        assert response.status_code == status, response.text
        assert response.json()["error"]["param"] == param
        assert (await client.get("/v1/files")).json()["data"] == []
    assert list(storage.out.list("")) == []


@pytest.mark.parametrize(
    "kind", ["", "application/json", "multipart/form-data", "text/plain; boundary=x"]
)
async def test_only_a_form_with_a_boundary_is_read(storage: Storage, kind: str) -> None:
    """Anything else is 415."""
    async with batches_client(storage) as client:
        response = await client.post("/v1/files", content=b"{}", headers={"content-type": kind})
    assert response.status_code == 415


async def test_a_caller_that_leaves_leaves_no_file(storage: Storage) -> None:
    """What had come of it is dropped."""
    caller = Caller(BEGUN, {"type": "http.disconnect"})
    await caller.run(batches_app(storage))
    assert list(storage.out.list("")) == []


async def test_an_upload_that_takes_too_long_is_given_up(storage: Storage) -> None:
    """The answer is 504, and the thread that wrote is free again."""
    app = batches_app(storage, request_timeout_s=0.2)
    callers = [Caller(BEGUN) for _ in range(batches.UPLOADS)]
    await asyncio.wait_for(asyncio.gather(*(caller.run(app) for caller in callers)), PATIENCE_S)
    assert {caller.sent[0]["status"] for caller in callers} == {504}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r") as client:
        async with asyncio.timeout(PATIENCE_S):  # the threads end in their own time
            while True:
                response = await client.post("/v1/files", content=PURPOSE + FILE + END, headers=FORM)
                if response.status_code != 504:
                    break
    stored = {stat.key: storage.out.read(stat.key) for stat in storage.out.list("")}
    assert f"files/{response.json()['id']}" in stored
    assert set(stored.values()) == {LINE}  # and nothing of what was given up


async def test_a_storage_that_fails_is_told_as_such(storage: Storage) -> None:
    """503, so that clients try again."""

    class Failing(Recording):
        def write_stream(self, key: str, blocks: Iterable[bytes], metadata: object = None) -> None:
            raise StoreUnavailable("the bulk storage did not answer")

    async with batches_client(replace(storage, out=cast(Blobs, Failing(storage.out)))) as client:
        response = await client.post("/v1/files", content=PURPOSE + FILE + END, headers=FORM)
    assert response.status_code == 503


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"endpoint": "/v1/responses"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"input_file_id": "file-" + 24 * "0"}, 404, "input_file_id"),
        ({"input_file_id": "../secret"}, 404, "input_file_id"),
        ({"input_file_id": 5}, 400, "input_file_id"),
        ({"metadata": {str(n): "" for n in range(17)}}, 400, "metadata"),
        ({"metadata": {"k" * 65: ""}}, 400, "metadata"),
        ({"metadata": {"k": "v" * 513}}, 400, "metadata"),
    ],
)
async def test_a_wrong_batch_is_refused(
    storage: Storage, changes: dict[str, Any], status: int, param: str
) -> None:
    """With the parameter, and no work is begun."""
    async with batches_client(storage) as client:
        body = batch_of(await upload(client), **changes)
        response = await client.post("/v1/batches", json=body)
        assert response.status_code == status, response.text
        assert response.json()["error"]["param"] == param
        assert (await client.get("/v1/batches")).json()["data"] == []
    assert storage.queue("bulk-split").depth() == 0


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/files?limit=0", 400),
        ("/v1/files?limit=10001", 400),
        ("/v1/files?limit=many", 400),
        ("/v1/files?order=up", 400),
        ("/v1/files?after=file-x", 400),
        ("/v1/batches?limit=101", 400),
        ("/v1/batches?after=x", 404),
        ("/v1/files/file-1", 404),
        ("/v1/files/..%2Fbatches", 404),
        ("/v1/files/file-1/content", 404),
        (f"/v1/batches/batch_{24 * '0'}", 404),
    ],
)
async def test_what_is_not_there_is_told(storage: Storage, path: str, status: int) -> None:
    """404 or 400, in OpenAI's shape."""
    async with batches_client(storage) as client:
        response = await client.get(path)
    assert response.status_code == status, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_files_are_listed_in_either_order_in_pages(storage: Storage, tmp_path: Path) -> None:
    """By the time of their upload, `after` a file, only of a purpose."""
    async with batches_client(storage) as client:
        ids = [await upload(client) for _ in range(4)]

        async def listed(query: str) -> tuple[list[str], bool]:
            answer = (await client.get(f"/v1/files?{query}")).json()
            return [file["id"] for file in answer["data"]], answer["has_more"]

        assert await listed("") == (ids[::-1], False)
        assert await listed("order=asc&limit=3") == (ids[:3], True)
        assert await listed(f"order=asc&after={ids[2]}") == (ids[3:], False)
        assert await listed("purpose=batch_output") == ([], False)
        for file_id in ids:  # all within one second, which is all that Azure tells
            os.utime(tmp_path / "bulk-out" / "files" / file_id, (1e9, 1e9))
        assert await listed("") == (ids[::-1], False)


async def test_a_batch_cancelled_before_its_turn_does_no_work(storage: Storage) -> None:
    """It is cancelling until a splitter comes by, then cancelled."""
    async with batches_client(storage) as client:
        made = (await client.post("/v1/batches", json=batch_of(await upload(client)))).json()
        answer = (await client.post(f"/v1/batches/{made['id']}/cancel")).json()
        assert answer["status"] == "cancelling"
        await drain(storage, bulk_of(storage))
        answer = (await client.get(f"/v1/batches/{made['id']}")).json()
        files = (await client.get("/v1/files?purpose=batch_output")).json()["data"]
    assert answer["status"] == "cancelled"
    assert answer["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert (answer["output_file_id"], answer["error_file_id"], files) == (None, None, [])
    assert storage.queue("bulk-cpu").depth() == 0


async def test_a_batch_tells_when_it_came_to_each_state(storage: Storage) -> None:
    """Known from then on; those that it never came to stay null."""
    bulk = bulk_of(storage)
    names = ("in_progress_at", "finalizing_at", "completed_at", "cancelled_at", "failed_at")

    async def told() -> list[str]:
        answer = (await client.get(f"/v1/batches/{made['id']}")).json()
        times = [answer[name] for name in names if answer[name] is not None]
        assert times == sorted(times)
        return [name for name in names if answer[name] is not None]

    async with batches_client(storage) as client:
        made = (await client.post("/v1/batches", json=batch_of(await upload(client)))).json()
        assert await told() == []
        await bulk.split(take(storage, "bulk-split") or b"")
        assert await told() == ["in_progress_at"]
        await bulk.embed(take(storage, "bulk-cpu") or b"")
        bulk.stop()
        finish = take(storage, "bulk-finish") or b""
        with pytest.raises(Unavailable):  # it stops when it has begun the output
            await bulk.finish(finish)
        assert await told() == ["in_progress_at", "finalizing_at"]
        await bulk_of(storage).finish(finish)
        assert await told() == ["in_progress_at", "finalizing_at", "completed_at"]


async def test_a_batch_whose_file_is_deleted_before_its_turn_fails(storage: Storage) -> None:
    """It does not wait for ever."""
    async with batches_client(storage) as client:
        file_id = await upload(client)
        made = (await client.post("/v1/batches", json=batch_of(file_id))).json()
        await client.delete(f"/v1/files/{file_id}")
        await drain(storage, bulk_of(storage))
        answer = (await client.get(f"/v1/batches/{made['id']}")).json()
    assert answer["status"] == "failed"
    assert answer["errors"]["data"][0]["code"] == "source_changed"


async def test_a_batch_whose_message_was_lost_is_begun_again(storage: Storage) -> None:
    """By the reconciliation, once it is late; and it has the same id still."""
    async with batches_client(storage) as client:
        made = (await client.post("/v1/batches", json=batch_of(await upload(client)))).json()
        assert take(storage, "bulk-split") is not None
        await bulk_of(storage).reconcile()
        assert storage.queue("bulk-split").depth() == 0
        late = made["created_at"] + MISSED_S + 2
        await bulk_of(storage, clock=lambda: late).reconcile()
        await drain(storage, bulk_of(storage))
        answer = (await client.get(f"/v1/batches/{made['id']}")).json()
    assert answer["status"] == "completed"
    assert answer["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


async def test_a_request_may_go_on_in_another_chunk(storage: Storage) -> None:
    """It is one request, whether it lies in one chunk or two, and whether it fails in one or both."""
    bulk = bulk_of(storage)
    lines = [
        {
            "custom_id": str(n),
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"input": [f"text {n}.{k}" for k in range(90)]},
        }
        for n in range(12)
    ]
    async with batches_client(storage) as client:
        content = b"".join(json.dumps(each).encode() + b"\n" for each in lines)
        file_id = await upload(client, content)
        made = (await client.post("/v1/batches", json=batch_of(file_id))).json()
        await bulk.split(take(storage, "bulk-split") or b"")
        await bulk.embed(take(storage, "bulk-cpu") or b"")
        running = (await client.get(f"/v1/batches/{made['id']}")).json()
        assert running["status"] == "in_progress"
        assert running["request_counts"]["total"] == 12
        assert 0 < running["request_counts"]["completed"] < 12
        # The second of three chunks fails, and with it the requests that it shares with the others.
        await bulk.give_up(take(storage, "bulk-cpu") or b"")
        await drain(storage, bulk)
        answer = (await client.get(f"/v1/batches/{made['id']}")).json()
        output = (await client.get(f"/v1/files/{answer['output_file_id']}/content")).text
        errors = (await client.get(f"/v1/files/{answer['error_file_id']}/content")).text
    counts = answer["request_counts"]
    assert counts["total"] == 12
    assert counts["completed"] == len(output.splitlines()) == 12 - counts["failed"]
    assert counts["failed"] == len(errors.splitlines()) > 0


async def test_keys_guard_files_and_batches(storage: Storage) -> None:
    """Without one, no path looks unlike another."""
    key = "a-key-of-some-length"
    hashes = (hashlib.sha256(key.encode()).hexdigest(),)
    async with batches_client(storage, api_key_hashes=hashes) as client:
        for method, path in (
            ("POST", "/v1/files"),
            ("GET", "/v1/batches"),
            ("GET", "/v1/files/x/content"),
        ):
            assert (await client.request(method, path)).status_code == 401
        answer = await client.get("/v1/files", headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200


async def test_the_description_names_every_route(storage: Storage) -> None:
    """With their parameters and bodies; without a bulk storage there are none."""
    paths = batches_app(storage).openapi()["paths"]
    assert set(paths["/v1/files"]) == {"get", "post"}
    assert set(paths["/v1/files/{file_id}"]) == {"get", "delete"}
    assert set(paths["/v1/batches"]) == {"get", "post"}
    assert {"/v1/files/{file_id}/content", "/v1/batches/{batch_id}/cancel"} <= set(paths)
    body = paths["/v1/batches"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["required"]) == {"input_file_id", "endpoint", "completion_window"}
    form = paths["/v1/files"]["post"]["requestBody"]["content"]
    assert set(form) == {"multipart/form-data"}
