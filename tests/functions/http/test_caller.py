"""What callers get that leave, send too much or are still there when the server stops: real sockets."""

from __future__ import annotations

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

import functions.http.caller
from functions.api.responses import error_response
from functions.http.caller import Endpoint, read_body, wrap_endpoint
from shared.dialects import tei
from shared.observability.metrics import Telemetry
from tests.patience import PATIENCE_S
from tests.sockets import exchange, http, serving

LIMIT = 1_000_000
MUCH = b"a" * 24_000_000
"""More than a socket's buffers hold: its sender is still sending when it is refused."""


def app_of(endpoint: Endpoint) -> ASGIApp:
    respond = partial(error_response, tei.format_error)
    endpoint = wrap_endpoint(endpoint, respond, Telemetry(CollectorRegistry()), timeout_s=PATIENCE_S)
    return Starlette(routes=[Route("/", endpoint, methods=["POST"])])


async def read(request: Request) -> Response:
    return Response(str(len(await read_body(request, LIMIT))))


def in_one(data: bytes) -> bytes:
    return data


def in_chunks(data: bytes) -> Iterator[bytes]:
    """Without a length."""
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


@pytest.mark.parametrize("sent", [in_one, in_chunks])
def test_who_sends_too_much_gets_an_answer(sent: Callable[[bytes], bytes]) -> None:
    """413, not a reset connection, also if it sends all before it reads."""
    with serving(app_of(read)) as port:
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/", sent(MUCH), method="POST")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=PATIENCE_S)
        refused.value.close()
        assert refused.value.code == 413


@pytest.mark.anyio
async def test_who_asks_before_sending_too_much_is_answered_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not told to continue; nor is a length waited for that nobody reads to the end."""
    monkeypatch.setattr(functions.http.caller, "_DRAIN_S", 2 * PATIENCE_S)
    with serving(app_of(read)) as port:
        for header in (b"expect: 100-continue", b"content-length: 99999999999"):
            length = b"content-length: %d" % len(MUCH)
            headers = (header,) if header.startswith(b"content-length") else (length, header)
            answer = await exchange(port, http(*headers, body=b"", path=b"/"))
            assert answer.startswith(b"HTTP/1.1 413"), header


@pytest.mark.anyio
async def test_who_stops_sending_what_is_too_much_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its answer comes when it has had its time."""
    monkeypatch.setattr(functions.http.caller, "_DRAIN_S", 0.01)
    with serving(app_of(read)) as port:
        request = http(b"content-length: %d" % len(MUCH), body=b"a" * 100, path=b"/")
        assert (await exchange(port, request)).startswith(b"HTTP/1.1 413")


def test_a_server_that_stops_answers_what_it_cannot_finish(caplog: pytest.LogCaptureFixture) -> None:
    """503 and when to come again, and no stack trace: nothing went wrong."""
    began = threading.Event()

    async def endless(request: Request) -> Response:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    with ThreadPoolExecutor(1) as pool:
        with serving(app_of(endless), grace_s=0) as port:
            asking = pool.submit(httpx.post, f"http://127.0.0.1:{port}/", timeout=PATIENCE_S)
            assert began.wait(PATIENCE_S)
        answer = asking.result()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"] == "the service is stopping"
    assert not [record for record in caplog.records if record.exc_info]
