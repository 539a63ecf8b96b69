"""Bytes that are hardly HTTP, over a real socket to the server that functions.local runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from starlette.types import ASGIApp

from functions.local import listen
from tests.functions.test_hostile import router_of
from tests.patience import PATIENCE_S


@contextmanager
def serving(app: ASGIApp, grace_s: int | None = None) -> Iterator[int]:
    """`app` in uvicorn as functions.local runs it, in a thread; yields the port.

    grace_s: so long requests under way are waited for at the end; None: for ever.
    """
    with listen("127.0.0.1", 0) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            lifespan="off",
            access_log=False,
            timeout_graceful_shutdown=grace_s,
        )
        server = uvicorn.Server(config)
        listener.listen()  # connections wait from now on
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)


async def exchange(port: int, request: bytes) -> bytes:
    """What comes back for `request`, up to the end of the connection."""

    async def talk() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            await writer.drain()
            return await reader.read()
        except ConnectionError:
            return b""  # cut off while we were still sending: as good as refused
        finally:
            writer.close()

    return await asyncio.wait_for(talk(), PATIENCE_S)


BODY = b'{"model":"m","input":"a"}'


def http(*headers: bytes, body: bytes = BODY, path: bytes = b"/v1/embeddings") -> bytes:
    lines = (b"POST %s HTTP/1.1" % path, b"host: x", b"connection: close", *headers)
    return b"\r\n".join((*lines, b"", body))


SIZED = b"content-length: %d" % len(BODY)


@pytest.mark.anyio
async def test_requests_that_are_not_http_are_refused_and_others_go_on_being_served() -> None:
    """Headers and request lines without end, lengths that contradict, chunks that are none."""
    spoilt = {
        "header of 1 MB": http(SIZED, b"x-big: " + b"a" * 1_000_000),
        "1 MB of headers": http(SIZED, *(b"x-%d: %s" % (n, b"a" * 1_000) for n in range(1_000))),
        "path of 1 MB": http(SIZED, path=b"/" + b"a" * 1_000_000),
        "query of 1 MB": http(SIZED, path=b"/v1/embeddings?" + b"a=1&" * 250_000),
        "length of 5,000 digits": http(b"content-length: " + b"9" * 5_000),
        "negative length": http(b"content-length: -1"),
        "two lengths": http(SIZED, b"content-length: 1"),
        "length beyond the limit": http(b"content-length: 99999999999"),
        "chunk size that is no number": http(b"transfer-encoding: chunked", body=b"zz\r\n"),
        "chunk size without end": http(b"transfer-encoding: chunked", body=b"f" * 300_000),
        "header without a colon": http(SIZED, b"nonsense"),
        "NUL in a header": http(SIZED, b"x: \x00"),
        "encoded way out": http(SIZED, path=b"/openai/deployments/..%2f..%2fsecret/embeddings"),
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    }
    with serving(router_of()) as port:
        for name, request in spoilt.items():
            status = (await exchange(port, request)).partition(b"\r\n")[0]
            assert status == b"" or status.startswith(b"HTTP/1.1 4"), name
            assert (await exchange(port, http(SIZED))).startswith(b"HTTP/1.1 200"), name


@pytest.mark.anyio
async def test_a_large_body_without_a_key_is_answered_before_it_is_read() -> None:
    """Who has no key cannot make us hold 10 MB."""
    with serving(router_of(api_key_hashes=("0" * 64,))) as port:
        answer = await exchange(port, http(b"content-length: 10000000", body=b"a" * 100))
        assert answer.startswith(b"HTTP/1.1 401")
