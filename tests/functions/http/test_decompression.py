"""Compressed bodies: what is read, what is refused by name, and how much of a bomb is unpacked."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import Callable

import httpx
import pytest
import zstandard
from starlette.requests import Request
from starlette.types import Message, Scope

from functions.http import admission, decompression
from functions.http.admission import SMALL_BYTES, Admission
from functions.http.caller import read_body
from shared.errors import Overloaded, PayloadTooLarge
from tests.apps import router_client
from tests.fakes.backend import FakeBackend, vector_of

pytestmark = pytest.mark.anyio

BODY = json.dumps({"model": "mini", "input": "a"}).encode()
JSON = {"content-type": "application/json"}


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def zstd_of_unknown_size(data: bytes) -> bytes:
    packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return packer.compress(data) + packer.flush()


def in_two(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: pack(data[:5]) + pack(data[5:])


async def post(
    content: bytes, coding: str, path: str = "/v1/embeddings", **settings: int
) -> httpx.Response:
    async with router_client(FakeBackend("mini", "rerank-1"), **settings) as client:
        headers = {**JSON, "content-encoding": coding} if coding else JSON
        return await client.post(path, content=content, headers=headers)


READ = [
    ("gzip", gzip.compress),
    ("GZip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("gzip", in_two(gzip.compress)),
    ("gzip, identity", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("zstd", zstd),
    ("zstd", zstd_of_unknown_size),
    ("zstd", in_two(zstd)),
    ("identity", bytes),
    ("", bytes),
]


@pytest.mark.parametrize(("coding", "pack"), READ)
async def test_a_packed_body_is_read_as_if_it_were_not(
    coding: str, pack: Callable[[bytes], bytes]
) -> None:
    """Every coding, in each of its forms."""
    response = await post(pack(BODY), coding)
    assert response.status_code == 200, response.text
    assert response.json()["data"][0]["embedding"] == pytest.approx(vector_of("a", 8).tolist())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "mini", "input": "a"}),
        ("/embed", {"model": "mini", "inputs": "a"}),
        ("/", {"model": "mini", "inputs": "a"}),
        ("/rerank", {"model": "rerank-1", "query": "q", "texts": ["a"]}),
        ("/v2/rerank", {"model": "rerank-1", "query": "q", "documents": ["a"]}),
        ("/v2/embed", {"model": "mini", "texts": ["a"], "input_type": "search_query"}),
        ("/azure-search?model=mini", {"values": [{"recordId": "0", "data": {"text": "a"}}]}),
    ],
)
async def test_every_dialect_reads_packed_bodies(path: str, body: dict[str, object]) -> None:
    """Also where the body decides whose it is."""
    response = await post(gzip.compress(json.dumps(body).encode()), "gzip", path)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("coding", "content", "status", "said"),
    [
        ("br", BODY, 415, "Content-Encoding br is not supported: send gzip, deflate or zstd"),
        ("compress", BODY, 415, "Content-Encoding compress is not supported"),
        ("<b>", BODY, 415, "Content-Encoding of this kind is not supported"),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY, mtime=0)), 415, "more than once"),
        ("zstd, gzip", gzip.compress(zstd(BODY), mtime=0), 415, "more than once"),
        ("gzip", BODY, 400, "not complete and valid gzip"),
        ("deflate", BODY, 400, "not complete and valid deflate"),
        ("zstd", BODY, 400, "not complete and valid zstd"),
        ("gzip", gzip.compress(BODY, mtime=0)[:-1], 400, "not complete and valid gzip"),
        ("gzip", gzip.compress(BODY, mtime=0)[:-5] + b"12345", 400, "not complete and valid gzip"),
        ("gzip", gzip.compress(BODY, mtime=0) + b"more", 400, "not complete and valid gzip"),
        ("deflate", zlib.compress(BODY)[:-1], 400, "not complete and valid deflate"),
        ("deflate", zlib.compress(BODY) + b"more", 400, "not complete and valid deflate"),
        ("zstd", zstd(BODY)[:-1], 400, "not complete and valid zstd"),
        ("gzip", b"", 400, "the body is empty"),
        ("gzip", gzip.compress(b"", mtime=0), 400, "the body is empty"),
        ("", gzip.compress(BODY, mtime=0), 400, "not valid JSON"),
    ],
)
async def test_what_cannot_be_unpacked_is_told(
    coding: str, content: bytes, status: int, said: str
) -> None:
    """By the name of the coding, and what would be right."""
    response = await post(content, coding)
    assert (response.status_code, said in response.text) == (status, True), response.text


BOMB = bytes(64_000_000)
LIMIT = 1_000_000


@pytest.mark.parametrize(
    ("coding", "bomb"),
    [
        ("gzip", gzip.compress(BOMB, mtime=0)),
        ("deflate", zlib.compress(BOMB)),
        ("deflate", raw_deflate(BOMB)),
        ("zstd", zstd(BOMB)),
        ("zstd", zstd_of_unknown_size(BOMB)),
    ],
)
async def test_a_bomb_is_refused_while_it_is_unpacked(
    coding: str, bomb: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """413 in the dialect's shape, once the limit is passed, and no byte of 64 MB after that step."""
    steps: list[int] = []
    step = decompression.Decompressor.step

    def counting(self: decompression.Decompressor) -> bytes:
        part = step(self)
        steps.append(len(part))
        return part

    monkeypatch.setattr(decompression.Decompressor, "step", counting)
    response = await post(bomb, coding, "/embed", max_body_bytes=LIMIT)
    assert response.status_code == 413
    assert "larger than 1000000 bytes once it is unpacked" in response.json()["error"]
    assert sum(steps[:-1]) <= LIMIT
    assert steps[-1] <= 9 << 20


async def test_one_byte_decides() -> None:
    """A body of as many bytes as may be is read, however it is packed."""
    body = BODY.ljust(4000)
    assert (await post(gzip.compress(body, mtime=0), "gzip", max_body_bytes=4000)).status_code == 200
    assert (await post(gzip.compress(body, mtime=0), "gzip", max_body_bytes=3999)).status_code == 413


async def test_unpacked_bytes_are_held_against_other_requests() -> None:
    """As those of bodies that came so; the packed ones too, while they are there."""
    content = gzip.compress(bytes(600_000))
    others = Admission(max_requests=9, max_bytes=500_000)
    others.acquire().reserve(body_bytes=SMALL_BYTES + 100_000)
    alone = Admission(max_requests=9, max_bytes=500_000)

    def request(place: admission.Reservation) -> Request:
        async def receive() -> Message:
            return {"type": "http.request", "body": content, "more_body": False}

        headers = [(b"content-encoding", b"gzip")]
        scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        return Request({**scope, admission._RESERVATION: place}, receive)

    with pytest.raises(Overloaded):
        await read_body(request(others.acquire()), 1_000_000)
    assert others.reserved_bytes < 500_000
    assert len(await read_body(request(alone.acquire()), 1_000_000)) == 600_000
    assert alone.reserved_bytes == 600_000 + len(content) - SMALL_BYTES
    with pytest.raises(PayloadTooLarge):
        await read_body(request(alone.acquire()), 599_999)


async def test_a_large_one_is_unpacked_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps but the first of a small one."""
    threads: list[bool] = []
    step = decompression.Decompressor.step

    def noting(self: decompression.Decompressor) -> bytes:
        threads.append(threading.current_thread() is threading.main_thread())
        return step(self)

    monkeypatch.setattr(decompression.Decompressor, "step", noting)
    for packed, first_on_loop in (
        (gzip.compress(BODY, mtime=0), True),
        (gzip.compress(bytes(9_000_000)), False),
    ):
        threads.clear()
        await post(packed, "gzip")
        assert len(threads) > 1
        assert threads[0] == first_on_loop
        assert not any(threads[1:])
