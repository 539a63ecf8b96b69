"""Connections of the local server: how many, how long, and who gives way."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

import functions.local.connection
import functions.local.server
from functions.local.server import connection_limit
from tests.questions import seen
from tests.server import ROOT, started_service, wait_until_answered
from tests.sockets import Caller, serving
from tests.tiny import Tiny, publish_all

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
MUCH = 30_000_000
"""More than two sockets' buffers hold."""


class App:
    """Answers / with its path, /wait once `let` is set, /much with MUCH bytes."""

    def __init__(self) -> None:
        self.waiting = 0
        self.let = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            self.waiting += 1
            while not self.let:  # noqa: ASYNC110 - set in another thread
                await asyncio.sleep(0.005)
        size = MUCH if scope["path"] == "/much" else 2
        headers = [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"a" * size})


def is_gone(caller: Caller) -> bool:
    """Who does not read learns of it by sending."""
    caller.send(b".")
    return caller.writer.is_closing()


async def test_the_connection_that_is_idle_for_longest_gives_way() -> None:
    """To a new one, when there are as many as may be; the others stay."""
    with serving(App(), max_connections=3) as port:
        async with Caller(port) as first, Caller(port) as second, Caller(port) as third:
            for each in (second, first, third):  # second is idle for longest
                each.send(GET)
                assert await each.status() == 200
            async with Caller(port) as fourth:
                fourth.send(GET)
                assert await fourth.status() == 200
                assert await second.ended() == b""
                for each in (first, third):
                    each.send(GET)
                    assert await each.status() == 200


async def test_a_connection_waits_while_all_others_are_at_work() -> None:
    """It is answered as soon as one of them is idle; none of them is cut off."""
    app = App()
    with serving(app, max_connections=2) as port:
        async with Caller(port) as first, Caller(port) as second:
            for each in (first, second):
                each.send(GET.replace(b"/ ", b"/wait "))
            await seen(lambda: app.waiting == 2)
            # Not before: it would replace one that has sent nothing yet.
            async with Caller(port) as third:
                third.send(GET)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(third.reader.read(1), 0.1)
                app.let = True
                assert [await each.status() for each in (first, second, third)] == [200, 200, 200]


async def test_connections_that_send_nothing_do_not_keep_others_out() -> None:
    """Fifty of them where twenty may be, and somebody who asks all the time."""
    with serving(App(), max_connections=20) as port:
        callers = [Caller(port) for _ in range(50)]
        for caller in callers:
            await caller.__aenter__()
            async with Caller(port) as other:
                other.send(GET)
                assert await other.status() == 200
        for caller in callers:
            await caller.__aexit__()


@pytest.mark.parametrize("sent", [b"G", GET[:-2], b"POST / HTTP/1.1\r\nhost: x\r\nx-y: "])
async def test_headers_that_do_not_end_are_not_waited_for(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """408, and the connection is closed; for the second request of a connection just that."""
    monkeypatch.setattr(functions.local.connection, "HEADERS_S", 0.05)
    monkeypatch.setattr(functions.local.server, "_SWEEP_S", 0.02)
    with serving(App()) as port:
        async with Caller(port) as caller:
            caller.send(sent)
            assert (await caller.ended()).startswith(b"HTTP/1.1 408 ")
        async with Caller(port) as caller:
            caller.send(GET)
            assert await caller.status() == 200
            caller.send(sent)
            assert await caller.ended() == b""


@pytest.mark.parametrize("asks", [True, False])
async def test_an_idle_connection_is_closed_after_its_time(
    asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not it ever sent a request."""
    monkeypatch.setattr(functions.local.server, "_SWEEP_S", 0.02)
    with serving(App(), keep_alive_s=0.2) as port:
        async with Caller(port) as caller:
            if asks:
                caller.send(GET)
                assert await caller.status() == 200
            assert await caller.ended() == b""


async def test_who_takes_nothing_of_an_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold the answer's memory for ever. Who takes it, however late, gets all of it."""
    with serving(App()) as port:
        async with Caller(port) as caller:
            caller.send(LAST.replace(b"/ ", b"/much "))
            await asyncio.sleep(0.3)
            assert len(await caller.ended()) > MUCH
    monkeypatch.setattr(functions.local.connection, "STALLED_S", 0.2)
    monkeypatch.setattr(functions.local.server, "_SWEEP_S", 0.02)
    with serving(App()) as port:
        async with Caller(port) as caller:
            caller.send(GET.replace(b"/ ", b"/much "))
            caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await seen(lambda: is_gone(caller))
            caller.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert len(await caller.ended()) < MUCH


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_process_takes_no_more_connections_than_it_may_open_files() -> None:
    """It raises its soft limit to what it needs; where it may not, connections are fewer."""
    code = (
        "import resource, sys\n"
        "from functions.local.server import connection_limit\n"
        "soft, hard = map(int, sys.argv[1:])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "print(connection_limit(500), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    for soft, hard, expected in (
        (256, 1000, "500 600 1000"),
        (256, 256, "156 256 256"),
        (150, 150, "75 150 150"),
        (800, 1000, "500 800 1000"),
    ):
        command = [sys.executable, "-c", code, str(soft), str(hard)]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == expected
    assert connection_limit(1) == 1


async def test_without_file_descriptors_the_service_lives(tmp_path: Path) -> None:
    """400 idle connections where 256 files may be open: /health answers, and logs stay short."""
    publish_all([Tiny("tiny")], store := f"file://{tmp_path / 'models'}")
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        started_service(store, files=256, stderr=stderr) as (url, process),
    ):
        await asyncio.to_thread(wait_until_answered, f"{url}/ready", process, 60, anything=False)
        port = int(url.rpartition(":")[2])
        callers = [Caller(port) for _ in range(400)]
        for number, caller in enumerate(callers):
            await caller.__aenter__()
            if number % 50 == 0:
                async with Caller(port) as probe:
                    probe.send(
                        GET.replace(b"/ ", b"/health ").replace(b"host", b"connection: close\r\nhost")
                    )
                    assert (await probe.ended()).startswith(b"HTTP/1.1 200 ")
        for caller in callers:
            await caller.__aexit__()
        assert process.poll() is None
    assert len(log.read_bytes().splitlines()) < 10
    assert log.stat().st_size < 2_000
