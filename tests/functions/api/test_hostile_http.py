"""Bytes that are hardly HTTP, over a real socket to the server that functions.local runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.types import ASGIApp

from tests.apps import wire_backend, wire_router
from tests.sockets import SMALL_BODY, exchange, http, serving

SIZED = b"content-length: %d" % len(SMALL_BODY)


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
    with serving(wire_router()) as port:
        for name, request in spoilt.items():
            status = (await exchange(port, request)).partition(b"\r\n")[0]
            assert status == b"" or status.startswith(b"HTTP/1.1 4"), name
            assert (await exchange(port, http(SIZED))).startswith(b"HTTP/1.1 200"), name


@pytest.mark.anyio
async def test_a_large_body_without_a_key_is_answered_before_it_is_read() -> None:
    """Who has no key cannot make us hold 10 MB."""
    with serving(wire_router(api_key_hashes=("0" * 64,))) as port:
        answer = await exchange(port, http(b"content-length: 10000000", body=b"a" * 100))
        assert answer.startswith(b"HTTP/1.1 401")


ENCODED = b"transfer-encoding: chunked"
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMALL_BODY), SMALL_BODY)
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.anyio
@pytest.mark.parametrize("path", [b"/v1/embeddings", b"/embed", b"/v2/rerank", b"/health", b"/nothing"])
@pytest.mark.parametrize(
    "lengths",
    [
        (SIZED, ENCODED),
        (ENCODED, SIZED),
        (b"Content-Length: 0", b"Transfer-Encoding: CHUNKED"),
        (b"content-length: %d" % len(CHUNKED), ENCODED),
    ],
)
@pytest.mark.parametrize("app_of", [wire_router, wire_backend])
async def test_a_request_with_two_lengths_is_refused_and_its_connection_ends(
    app_of: Callable[[], ASGIApp], lengths: tuple[bytes, ...], path: bytes
) -> None:
    """Nothing after it is answered: that may be a request which somebody hid in its body."""
    lines = (b"POST %s HTTP/1.1" % path, b"host: x", *lengths, b"", CHUNKED + SMUGGLED * 2)
    with serving(app_of()) as port:
        answer = await exchange(port, b"\r\n".join(lines))  # until the connection ends
        head = answer.partition(b"\r\n\r\n")[0].lower()
        assert head.startswith((b"http/1.1 400", b"http/1.1 422"))
        assert b"connection: close" in head
        assert b"not both" in answer
        assert answer.count(b"HTTP/1.1 ") == 1
