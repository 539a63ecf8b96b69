"""Who is let in: decided before a body is read, over real sockets to the server of functions.local."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from functions.http.admission import PROBES, SMALL_BYTES, Admission
from shared.dialects.operations import PATHS, error_format_at
from shared.errors import Overloaded
from shared.wire import messages
from tests.apps import backend_app, router_app
from tests.fakes.backend import FakeBackend
from tests.fakes.inference import FakeInference
from tests.questions import seen
from tests.sockets import SMALL_BODY, exchange, http, serving

pytestmark = pytest.mark.anyio

LARGE = SMALL_BYTES + 1_000


class Full(FakeBackend):
    """Its queue has no room."""

    def check(self) -> None:
        raise Overloaded("too many requests are waiting: retry later", retry_after_s=7.0)


class Blocked(FakeBackend):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = 0
        self.let = asyncio.Event()

    async def _receive(self, request: Any) -> None:
        self.arrived += 1
        await seen(self.let.is_set)  # not by waiting: the server's loop is another thread's
        await super()._receive(request)


def head_of(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, body


def text_of(size: int) -> bytes:
    """A valid body of `size` bytes."""
    body = b'{"model":"mini","input":"%s"}'
    return body % (b"a" * (size - len(body) + 2))


def post(body: bytes, path: bytes = b"/v1/embeddings") -> bytes:
    return http(b"content-length: %d" % len(body), body=body, path=path)


@asynccontextmanager
async def blocked(backend: Blocked, port: int, *bodies: bytes) -> AsyncIterator[list[Any]]:
    """So many requests under way until the block ends; then they are answered."""
    tasks = [asyncio.create_task(exchange(port, post(body))) for body in bodies]
    await seen(lambda: backend.arrived == len(bodies))
    try:
        yield tasks
    finally:
        backend.let.set()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("path", [path.replace("{model}", "mini") for path in PATHS])
async def test_a_full_queue_refuses_before_the_body_in_the_shape_of_the_path(path: str) -> None:
    """Its bytes never come: who waited for them would not answer. Retry-After is the queue's."""
    promised = http(b"content-length: 1000", body=b"", path=path.encode())
    with serving(router_app(Full())) as port:
        status, headers, body = head_of(await exchange(port, promised))
    expected, shape = error_format_at(path)(Overloaded("too many requests are waiting: retry later"))
    assert (status, headers["retry-after"], body) == (429, "7", shape)
    assert expected == 429


async def test_one_request_too_many_is_refused_and_there_is_room_again_afterwards() -> None:
    """After answers, errors and callers that release."""
    backend = Blocked()
    with serving(router_app(backend, max_requests=2)) as port:
        async with blocked(backend, port, SMALL_BODY, SMALL_BODY) as answers:
            status, headers, body = head_of(await exchange(port, http(b"content-length: 9", body=b"")))
            assert (status, headers["retry-after"]) == (429, "1")
            assert "2 requests are in progress" in orjson.loads(body)["error"]["message"]
        assert [head_of(await each)[0] for each in answers] == [404, 404]  # there is no model m
        for _ in range(5):
            status, _, _ = head_of(await exchange(port, post(b"not JSON")))
            assert status == 400
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(http(b"content-length: 1000", body=b"half of it"))
            await writer.drain()
            writer.close()
        status, _, _ = head_of(await exchange(port, post(text_of(100))))
        assert status == 200


@pytest.mark.parametrize("path", PROBES)
async def test_probes_are_answered_when_nothing_else_is(path: str) -> None:
    """A busy instance is not dead."""
    backend = Blocked()
    with serving(router_app(backend, max_requests=1)) as port:
        async with blocked(backend, port, SMALL_BODY):
            probe = b"GET %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path.encode()
            status, _, _ = head_of(await exchange(port, probe))
    assert status == 200


async def test_large_bodies_have_a_bound_together_and_do_not_keep_out_small_ones() -> None:
    """Announced bytes count at once, others as they come."""
    backend = Blocked()
    held = 10  # 1,000 bytes each of the body, and 8 floats of the answer
    limit = held * (1_000 + 8 * 16)
    chunks = b"%x\r\n%s\r\n0\r\n\r\n"
    with serving(router_app(backend, max_pending_bytes=limit)) as port:
        bodies = [text_of(LARGE)] * held
        async with blocked(backend, port, *bodies):
            announced = http(b"content-length: %d" % LARGE, body=b"")
            status, headers, body = head_of(await exchange(port, announced))
            assert (status, headers["retry-after"]) == (429, "1")
            assert f"exceed the limit of {limit}: retry later" in orjson.loads(body)["error"]["message"]
            sent = chunks % (LARGE, text_of(LARGE))
            status, _, _ = head_of(await exchange(port, http(b"transfer-encoding: chunked", body=sent)))
            assert status == 429
            asking = asyncio.create_task(exchange(port, post(text_of(SMALL_BYTES - 1_000))))
            await seen(lambda: backend.arrived > held)
        assert head_of(await asking)[0] == 200
        status, _, _ = head_of(await exchange(port, post(text_of(LARGE))))
        assert status == 200


async def test_a_backend_refuses_in_the_wire_format() -> None:
    """The router reads when to come again."""

    class FullInference(FakeInference):
        def check(self) -> None:
            raise Overloaded("full", retry_after_s=3.0)

    with serving(backend_app(FullInference())) as port:
        promised = http(b"content-length: 1000", body=b"", path=b"/embed")
        status, headers, body = head_of(await exchange(port, promised))
    assert (status, headers["retry-after"]) == (429, "3")
    assert isinstance(messages.unpack_error(body), Overloaded)


async def test_answers_count_before_there_is_any_of_them() -> None:
    """Of 1,000 texts with 8 dimensions and 16 bytes a float: two such requests are one too many."""
    backend = Blocked()
    many = b'{"model":"mini","input":[%s]}' % b",".join([b'"a"'] * 1_000)
    with serving(router_app(backend, max_pending_bytes=1_000 * 8 * 16)) as port:
        async with blocked(backend, port, many) as answers:
            status, _, _ = head_of(await exchange(port, post(many)))
            assert status == 429
        assert head_of(await answers[0])[0] == 200
        assert head_of(await exchange(port, post(many)))[0] == 200


def test_what_is_counted_is_given_back_to_the_byte() -> None:
    """A refused byte counts for nobody."""
    admission = Admission(max_requests=2, max_bytes=100)
    one, two = admission.acquire(), admission.acquire()
    with pytest.raises(Overloaded):
        admission.acquire()
    one.reserve(body_bytes=SMALL_BYTES + 60)
    two.reserve(body_bytes=SMALL_BYTES)
    assert admission.reserved_bytes == 60
    with pytest.raises(Overloaded):
        two.reserve(body_bytes=SMALL_BYTES + 41)
    two.reserve(body_bytes=SMALL_BYTES + 30)
    with pytest.raises(Overloaded):
        two.reserve(answer_bytes=11)
    two.reserve(answer_bytes=10)
    one.reserve(body_bytes=SMALL_BYTES + 10)  # less than was announced: nothing more
    assert admission.reserved_bytes == 100
    one.release()
    assert admission.reserved_bytes == 40
    two.reserve(answer_bytes=10_000)  # alone
    two.release()
    assert (admission.requests, admission.reserved_bytes) == (0, 0)
