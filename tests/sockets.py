"""A server of functions.local in this process, and bytes over a real socket to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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
