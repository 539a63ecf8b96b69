"""What stands between a router and a backend, or in a backend's place, when something is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def silence() -> AsyncIterator[str]:
    """A backend's URL where connections are accepted and nothing is ever said."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while await reader.read(65_536):
                pass
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def gate(port: int, opened: asyncio.Event) -> AsyncIterator[str]:
    """The URL of a way to `port`, as a platform's front end is: it holds calls until `opened`."""
    held: set[asyncio.Task[None]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        held.add(task)
        writers = [writer]
        try:
            await opened.wait()
            answer, further = await asyncio.open_connection("127.0.0.1", port)
            writers.append(further)
            await asyncio.gather(pass_on(reader, further), pass_on(answer, writer))
        except asyncio.CancelledError:
            pass  # by us, below: asyncio's server would report it
        finally:
            for each in writers:
                each.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for task in held:
            task.cancel()
        await asyncio.gather(*held)
