"""What one connection of the local server may make it hold, and what a request learns of its caller."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from functions.local.connection import PIPELINED, UNFINISHED_BYTES
from tests.questions import seen
from tests.sockets import Caller, exchange, serving

pytestmark = pytest.mark.anyio

CHUNKED = (
    b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"
)
GET = b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n"


class App:
    """Answers with its path and its headers' names, once it has read the body; /0 waits for ever."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.left: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.begun.append(path)
        while (message := await receive()).get("more_body"):
            pass
        if path == "/0":
            while message["type"] != "http.disconnect":
                message = await receive()
        if message["type"] == "http.disconnect":
            self.left.append(path)
            return
        body = b" ".join([path.encode(), *(name for name, _ in scope["headers"])])
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def test_requests_sent_together_are_answered_in_their_order() -> None:
    """As many as may wait, and the one in progress."""
    requests = b"".join(GET % number for number in range(1, PIPELINED + 2))
    last = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with serving(App()) as port:
        async with Caller(port) as caller:
            caller.send(requests)
            for number in range(1, PIPELINED + 2):
                head = await caller.reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                body = await caller.reader.readexactly(len(b"/%d host" % number))
                assert body == b"/%d host" % number
            caller.send(last)
            assert (await caller.ended()).endswith(b"/last host connection")


async def test_who_sends_more_requests_than_may_wait_is_cut_off() -> None:
    """Each waiting request takes many times its bytes; nothing of them is begun."""
    app = App()
    with serving(app) as port:
        answer = await exchange(port, b"".join(GET % number for number in range(2_000)))
        assert b"200" not in answer
        assert set(app.begun) <= {"/0"}


@pytest.mark.parametrize("waiting", [0, 3])
async def test_a_caller_that_leaves_is_noticed_by_the_request_in_progress(waiting: int) -> None:
    """Also if others wait behind it, which are not begun then."""
    app = App()
    with serving(app) as port:
        async with Caller(port) as caller:
            caller.send(b"".join(GET % number for number in range(1 + waiting)))
            await seen(lambda: app.begun == ["/0"])
        await seen(lambda: app.left == ["/0"])
    assert app.begun == ["/0"]


async def test_a_trailer_is_no_header() -> None:
    """Nobody has checked it when the request is let in."""
    trailer = b"0\r\nx-trailer: 1\r\n\r\n"
    with serving(App()) as port:
        answer = await exchange(port, CHUNKED + trailer)
    assert answer.endswith(b"/ host connection transfer-encoding")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nx: ",
        b"GET /",
        CHUNKED + b"0\r\nx-trailer: ",
        CHUNKED + b"1;extension=",
    ],
    ids=["header", "path", "trailer", "extension of a chunk"],
)
async def test_what_does_not_end_is_refused(sent: bytes) -> None:
    """400 once it is longer than is kept; half of it is waited for."""
    with serving(App()) as port:
        async with Caller(port) as caller:
            caller.send(sent + b"a" * (UNFINISHED_BYTES // 2))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(caller.reader.read(1), 0.05)
            caller.send(b"a" * (UNFINISHED_BYTES + 1))
            assert (await caller.ended()).startswith(b"HTTP/1.1 400 ")
