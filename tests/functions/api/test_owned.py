"""Whose files and batches are whose, how many one may have, and until when."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from functions.api.key_list import owner_name
from shared.storage.blobs import Storage
from tests.functions.api.forms import (
    END,
    FORM,
    LINE,
    PURPOSE,
    batch_of,
    batches_app,
    bulk_of,
    drain,
    part,
    take,
    upload,
)

pytestmark = pytest.mark.anyio
MINE, OTHERS = "key-of-a-first-caller", "key-of-another-caller"
HASHES = tuple(hashlib.sha256(key.encode()).hexdigest() for key in (MINE, OTHERS))


def clients_of(storage: Storage, **settings: Any) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
    """Two callers of one service, each with a key of its own."""
    transport = httpx.ASGITransport(batches_app(storage, api_key_hashes=HASHES, **settings))
    first, second = (
        httpx.AsyncClient(
            transport=transport, base_url="http://router", headers={"authorization": f"Bearer {key}"}
        )
        for key in (MINE, OTHERS)
    )
    return first, second


async def has_batch(client: httpx.AsyncClient, storage: Storage) -> dict[str, str]:
    """A batch that has ended with an answer and an error; ids by name."""
    made = await client.post("/v1/batches", json=batch_of(await upload(client, LINE + b"no JSON\n")))
    await drain(storage, bulk_of(storage))
    batch = (await client.get(f"/v1/batches/{made.json()['id']}")).json()
    names = ("input_file_id", "output_file_id", "error_file_id")
    return {"batch": batch["id"], **{name: batch[name] for name in names}}


OPERATIONS: list[tuple[str, str, Callable[[str], Any]]] = [
    *(
        (method, f"/v1/files/{{{name}}}{path}", lambda _: None)
        for name in ("input_file_id", "output_file_id", "error_file_id")
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", ""))
    ),
    ("GET", "/v1/batches/{batch}", lambda _: None),
    ("POST", "/v1/batches/{batch}/cancel", lambda _: None),
    ("POST", "/v1/batches", batch_of),
]


@pytest.mark.parametrize(
    ("method", "path", "body"), OPERATIONS, ids=[f"{each[0]} {each[1]}" for each in OPERATIONS]
)
async def test_what_is_anothers_is_not_there(
    storage: Storage, method: str, path: str, body: Callable[[str], Any]
) -> None:
    """The very answer that an id gets which nobody has, and nothing happens; its owner may."""
    mine, others = clients_of(storage)
    async with mine, others:
        ids = await has_batch(mine, storage)
        before = sorted(stat.key for stat in storage.out.list(""))
        nobodys = {name: value[:-24] + "0" * 24 for name, value in ids.items() if name == "batch"}
        nobodys |= {name: "file-" + "0" * 24 for name in ids if name != "batch"}
        answers = [
            await others.request(method, path.format(**of), json=body(of["input_file_id"]))
            for of in (ids, nobodys)
        ]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].content == answers[1].content
        assert sorted(stat.key for stat in storage.out.list("")) == before
        allowed = await mine.request(method, path.format(**ids), json=body(ids["input_file_id"]))
        assert allowed.status_code == 200


async def test_lists_show_ones_own(storage: Storage) -> None:
    """Files, their outputs, batches, and pages that would begin after another's."""
    mine, others = clients_of(storage)
    async with mine, others:
        ids = await has_batch(mine, storage)
        own = await upload(others)
        listed = [
            {each["id"] for each in (await client.get(path)).json()["data"]}
            for client in (mine, others)
            for path in ("/v1/files", "/v1/batches")
        ]
        files = {ids[name] for name in ids if name != "batch"}
        assert listed == [files, {ids["batch"]}, {own}, set()]
        assert (await others.get(f"/v1/files?after={ids['input_file_id']}")).status_code == 400
        assert (await others.get(f"/v1/batches?after={ids['batch']}")).json()["data"] == []


async def test_what_is_stored_tells_neither_key_nor_hash(storage: Storage) -> None:
    """Whoever may list the containers, and read them, learns which files have one owner, no more."""
    mine, others = clients_of(storage)
    async with mine, others:
        await has_batch(mine, storage)
    stats = list(storage.out.list(""))
    assert {stat.key.split("/")[1] for stat in stats if stat.key.startswith(("files/", "batches/"))} == {
        owner_name(HASHES[0])
    }
    for stat in stats:
        told = f"{stat.key} {stat.metadata} {storage.out.read(stat.key)!r}"
        assert MINE not in told
        assert HASHES[0][:12] not in told


async def test_what_was_made_without_keys_is_for_those_without_keys(storage: Storage) -> None:
    """And the other way round: who turns keys on, or off, shows nobody another's files."""
    transport = httpx.ASGITransport(batches_app(storage))
    mine, others = clients_of(storage)
    async with mine, others, httpx.AsyncClient(transport=transport, base_url="http://r") as anyone:
        everyones, own = await upload(anyone), await upload(mine)
        for client, seen, unseen in ((anyone, everyones, own), (mine, own, everyones)):
            assert [f["id"] for f in (await client.get("/v1/files")).json()["data"]] == [seen]
            assert (await client.get(f"/v1/files/{unseen}")).status_code == 404


async def send(client: httpx.AsyncClient, size: int, *, chunked: bool = False) -> httpx.Response:
    body = PURPOSE + part("file", b"x" * size, "a.jsonl") + END

    async def pieces() -> Any:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    return await client.post("/v1/files", content=pieces() if chunked else body, headers=FORM)


def refusal(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    return str(error["message"])


async def test_a_key_has_so_many_files(storage: Storage) -> None:
    """The refusal names limit and use; another key's files do not count, deleted ones no more."""
    mine, others = clients_of(storage, key_files=2)
    async with mine, others:
        first = await upload(mine)
        await upload(mine)
        message = refusal(await send(mine, 5), 403, "quota_exceeded")
        assert message.startswith("a caller may have 2 files, and has 2: delete old files")
        await upload(others)
        await mine.delete(f"/v1/files/{first}")
        await upload(mine)


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
@pytest.mark.parametrize(("size", "fits"), [(300_000, True), (300_001, False), (390_000, False)])
async def test_a_keys_files_have_so_many_bytes(
    storage: Storage, size: int, fits: bool, chunked: bool
) -> None:
    """To the byte, whether the size is announced or comes out while it is read; nothing is left."""
    mine, others = clients_of(storage, key_file_bytes=1_000_000)
    async with mine, others:
        for _ in range(7):
            assert (await send(mine, 100_000)).status_code == 200
        response = await send(mine, size, chunked=chunked)
        assert (response.status_code == 200) is fits
        if not fits:
            message = refusal(response, 403, "quota_exceeded")
            assert "1000000 bytes of files, and has 700000" in message
        assert len((await mine.get("/v1/files")).json()["data"]) == 7 + fits
        assert (await send(others, 300_001)).status_code == 200


async def test_an_announced_body_is_refused_before_it_is_read(storage: Storage) -> None:
    """Not one byte of it is asked for."""
    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"", "more_body": True}

    sent: list[Any] = []

    async def collect(message: Any) -> None:
        sent.append(message)

    length = (b"content-length", b"200000000")
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/files",
        "raw_path": b"/v1/files",
        "query_string": b"",
        "headers": [(b"content-type", FORM["content-type"].encode()), length],
    }
    await batches_app(storage, key_file_bytes=100_000_000)(scope, receive, collect)
    assert (sent[0]["status"], asked) == (403, 0)


async def test_a_key_has_so_many_batches_under_way(storage: Storage) -> None:
    """429 for the next, until one has ended; another key's do not count."""
    mine, others = clients_of(storage, key_batches=2)
    async with mine, others:
        body = batch_of(await upload(mine))
        for _ in range(2):
            assert (await mine.post("/v1/batches", json=body)).status_code == 200
        response = await mine.post("/v1/batches", json=body)
        message = refusal(response, 429, "overloaded")
        assert message.startswith("a caller may have 2 running batches, and has 2: retry when")
        assert int(response.headers["retry-after"]) == 60
        other = await others.post("/v1/batches", json=batch_of(await upload(others)))
        assert other.status_code == 200
        await drain(storage, bulk_of(storage))
        assert (await mine.post("/v1/batches", json=body)).status_code == 200


async def test_what_batches_made_counts_too(storage: Storage) -> None:
    """An output may go beyond the limit, as nobody knows its size before; the next batch may not."""
    mine, others = clients_of(storage, key_file_bytes=len(LINE) + 1)
    async with mine, others:
        body = batch_of(await upload(mine))
        made = (await mine.post("/v1/batches", json=body)).json()
        await drain(storage, bulk_of(storage))
        batch = (await mine.get(f"/v1/batches/{made['id']}")).json()
        assert batch["status"] == "completed"
        output = (await mine.get(f"/v1/files/{batch['output_file_id']}")).json()
        used = len(LINE) + output["bytes"]
        message = refusal(await mine.post("/v1/batches", json=body), 403, "quota_exceeded")
        assert f"{len(LINE) + 1} bytes of files, and has {used}" in message
        await mine.delete(f"/v1/files/{output['id']}")
        assert (await mine.post("/v1/batches", json=body)).status_code == 200


async def test_batches_that_have_ended_count_as_records(storage: Storage) -> None:
    """Or somebody would fill the storage with batches that fail at once."""
    mine, others = clients_of(storage, key_files=2)
    async with mine, others:
        body = batch_of(await upload(mine))
        for _ in range(2):
            assert (await mine.post("/v1/batches", json=body)).status_code == 200
            take(storage, "bulk-split")
        message = refusal(await mine.post("/v1/batches", json=body), 403, "quota_exceeded")
        assert "2 batches, ended ones included, and has 2" in message


async def test_uploads_at_once_go_beyond_the_limit_by_one_each_at_most(storage: Storage) -> None:
    """Each was let in by what had been stored then; the next one sees them all."""
    mine, others = clients_of(storage, key_files=3)
    async with mine, others:
        await asyncio.gather(*(send(mine, 1000) for _ in range(4)))
        await upload(others)
        there = len((await mine.get("/v1/files")).json()["data"])
        assert 3 <= there <= 4
        assert (await send(mine, 1)).status_code == 403


SHORT: dict[str, str] = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}


def form_of(fields: dict[str, str]) -> bytes:
    return b"".join(part(name, value.encode()) for name, value in fields.items())


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(
    ("fields", "days", "seconds"),
    [
        ({}, 30, 2_592_000),
        ({}, 0.5, 43_200),
        ({}, 0, None),
        (SHORT, 30, 3600),
        (SHORT, 0, 3600),
        (SHORT | {"expires_after[seconds]": "2592000"}, 1, 2_592_000),
    ],
)
async def test_a_file_tells_when_it_expires(
    storage: Storage, fields: dict[str, str], days: float, seconds: int | None, last: bool
) -> None:
    """As its caller says, before the file or after it, or else by default."""
    file, stated = part("file", LINE, "a.jsonl"), form_of(fields)
    body = PURPOSE + (file + stated if last else stated + file) + END
    transport = httpx.ASGITransport(batches_app(storage, file_expiry_days=days))
    async with httpx.AsyncClient(transport=transport, base_url="http://r") as client:
        made = (await client.post("/v1/files", content=body, headers=FORM)).json()
        assert made["expires_at"] == (seconds and made["created_at"] + seconds)
        assert (await client.get(f"/v1/files/{made['id']}")).json() == made


@pytest.mark.parametrize(
    "fields",
    [
        {"expires_after[anchor]": "created_at"},
        {"expires_after[seconds]": "3600"},
        SHORT | {"expires_after[anchor]": "now"},
        SHORT | {"expires_after[seconds]": "3599"},
        SHORT | {"expires_after[seconds]": "2592001"},
        SHORT | {"expires_after[seconds]": "soon"},
        SHORT | {"expires_after[seconds]": "9" * 5_000},
    ],
)
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
async def test_an_expiry_that_cannot_be_is_refused(
    storage: Storage, fields: dict[str, str], last: bool
) -> None:
    """Of a file, in whatever order; nothing is left."""
    file, stated = part("file", LINE, "a.jsonl"), form_of(fields)
    body = PURPOSE + (file + stated if last else stated + file) + END
    transport = httpx.ASGITransport(batches_app(storage))
    async with httpx.AsyncClient(transport=transport, base_url="http://r") as client:
        response = await client.post("/v1/files", content=body, headers=FORM)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "expires_after"
    assert list(storage.out.list("")) == []


@pytest.mark.parametrize(
    "stated", [{"anchor": "created_at"}, {"anchor": "x", "seconds": 3600}, {"seconds": 1}, 5, [3600]]
)
async def test_an_output_expiry_that_cannot_be_is_refused(storage: Storage, stated: Any) -> None:
    """With its name, and no work is begun."""
    transport = httpx.ASGITransport(batches_app(storage))
    async with httpx.AsyncClient(transport=transport, base_url="http://r") as client:
        body = batch_of(await upload(client), output_expires_after=stated)
        response = await client.post("/v1/batches", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("output_expires_after")
    assert storage.queue("bulk-split").depth() == 0


async def test_what_has_expired_is_not_there_and_then_deleted(storage: Storage) -> None:
    """At once 404 and in no list; its bytes go with the next reconciliation, and others' stay."""
    now = [time.time()]
    transport = httpx.ASGITransport(batches_app(storage, clock=lambda: now[0], file_expiry_days=2))
    async with httpx.AsyncClient(transport=transport, base_url="http://r") as client:
        stated = {"anchor": "created_at", "seconds": 7200}
        body = PURPOSE + form_of(SHORT) + part("file", LINE + b"{\n", "a.jsonl") + END
        file_id = (await client.post("/v1/files", content=body, headers=FORM)).json()["id"]
        kept = await upload(client)
        asked = batch_of(file_id, output_expires_after=stated)
        batch_id = (await client.post("/v1/batches", json=asked)).json()["id"]
        await drain(storage, bulk_of(storage))
        batch = (await client.get(f"/v1/batches/{batch_id}")).json()
        assert batch["expires_at"] == batch["created_at"] + 86_400 + 2 * 86_400
        for name in ("output_file_id", "error_file_id"):
            made = (await client.get(f"/v1/files/{batch[name]}")).json()
            assert made["expires_at"] == made["created_at"] + 7200

        async def status(path: str) -> int:
            return (await client.get(path)).status_code

        async def there() -> list[int]:
            names = (file_id, batch["output_file_id"], batch["error_file_id"], kept)
            return [await status(f"/v1/files/{name}") for name in names]

        for after_s, expected in (
            (3500, [200, 200, 200, 200]),
            (3700, [404, 200, 200, 200]),
            (7400, [404, 404, 404, 200]),
        ):
            now[0] = batch["created_at"] + after_s
            assert await there() == expected
            await bulk_of(storage, clock=lambda: now[0]).reconcile()
            assert await there() == expected
            stored = sum(1 for _ in storage.out.list("files/"))
            assert stored == expected.count(200)
            assert len((await client.get("/v1/files")).json()["data"]) == stored
        assert await status(f"/v1/files/{file_id}/content") == 404
        response = await client.post("/v1/batches", json=asked)
        assert (response.status_code, response.json()["error"]["param"]) == (404, "input_file_id")

        assert await status(f"/v1/batches/{batch_id}") == 200
        now[0] = batch["expires_at"]
        assert await status(f"/v1/batches/{batch_id}") == 404
        assert (await client.get("/v1/batches")).json()["data"] == []
        now[0] += 600  # the job's state counts from its own times, which a slow machine makes later ones
        await bulk_of(storage, clock=lambda: now[0]).reconcile()
    assert [stat.key for stat in storage.out.list("")] == []


async def test_what_others_put_there_stays_as_it_was(storage: Storage, tmp_path: Path) -> None:
    """A file from before, or dropped into the folder, has no time of its own: it never expires."""
    name = f"file-{'0' * 24}"
    storage.out.write(f"files/{name}", LINE)
    transport = httpx.ASGITransport(batches_app(storage, clock=lambda: 4e9))
    async with httpx.AsyncClient(transport=transport, base_url="http://r") as client:
        await bulk_of(storage, clock=lambda: 4e9).reconcile()
        assert (await client.get(f"/v1/files/{name}")).json()["expires_at"] is None
