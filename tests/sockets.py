"""A server of functions.local in this process, and bytes over a real socket to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.types import ASGIApp

from functions.local.server import Server, accept_connections, listen
from tests.patience import PATIENCE_S


@contextmanager
def serving(
    app: ASGIApp,
    *,
    max_connections: int = 1000,
    keep_alive_s: float = 60,
    grace_s: int | None = None,
) -> Iterator[int]:
    """`app` as functions.local runs it, in a thread; yields the port.

    grace_s: so long requests under way are waited for at the end; None: for ever.
    """
    with listen("127.0.0.1", 0) as listener:
        server = Server(app, max_connections=max_connections, keep_alive_s=keep_alive_s, grace_s=grace_s)
        accept_connections(listener)  # they wait from now on
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)


class Caller:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Caller:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def status(self) -> int:
        """Of the next answer, which is read up to its end."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            await self.reader.readexactly(2)
        return int(head.split()[1])

    async def ended(self) -> bytes:
        """What still comes until the server closes."""
        with suppress(ConnectionError):
            return await asyncio.wait_for(self.reader.read(), PATIENCE_S)
        return b""


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


SMALL_BODY = b'{"model":"m","input":"a"}'


def http(*headers: bytes, body: bytes = SMALL_BODY, path: bytes = b"/v1/embeddings") -> bytes:
    lines = (b"POST %s HTTP/1.1" % path, b"host: x", b"connection: close", *headers)
    return b"\r\n".join((*lines, b"", body))
