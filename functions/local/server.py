"""The local HTTP server: uvicorn with limits on everything that a connection can occupy.

Does not know what is served. In Azure the platform is the server, and this module is unused.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from time import monotonic

import uvicorn
from starlette.types import ASGIApp

from functions.local.connection import Connection
from shared.errors import Misconfigured
from shared.wording import counted

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

_RESERVED_FILES = 100
"""File descriptors for everything but connections: model files, logs, backends, storage."""
_BACKLOG = 2048
_SWEEP_S = 1.0
_NO_FILES_S = 1.0
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_OTHER_PORT = "; choose another with --port NUMBER (make run PORT=NUMBER)"
_REMEDIES = {
    errno.EADDRINUSE: _OTHER_PORT,
    errno.EACCES: _OTHER_PORT,
    errno.EADDRNOTAVAIL: "; --host needs an address of this machine",
}

_log = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises Misconfigured.

    The protocol is explicit because asyncio disables Nagle's algorithm only then; otherwise each
    response waits 40 ms for the client's delayed acknowledgement.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = error.strerror or "not an address of this machine"
        remedy = _REMEDIES.get(error.errno or 0, "")
        raise Misconfigured(f"cannot listen on {host}, port {port}: {reason}{remedy}") from error
    return listener


def accept_connections(listener: socket.socket) -> None:
    """Start listening; a Server accepts the connections."""
    listener.listen(_BACKLOG)


def connection_limit(wanted: int) -> int:
    """How many connections this process can hold, at most `wanted`. Raises its limit of open files."""
    if resource is None:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    # With very few files, half of them: slow service is better than none.
    limit = max(soft - _RESERVED_FILES, soft // 2)
    _log.warning(
        "this process may open %s, so it accepts %s instead of %d: see ulimit -n",
        counted(soft, "file"),
        counted(limit, "connection"),
        wanted,
    )
    return limit


class Server(uvicorn.Server):
    """Serves `app` on a socket that `accept_connections` was called for, until a signal.

    max_connections: open connections. At the limit a new one replaces the one that has been idle for
    longest; if none is idle, it waits in the kernel's backlog.
    keep_alive_s: idle connections are closed after it. grace_s: for requests in progress when it stops.
    """

    def __init__(
        self, app: ASGIApp, *, max_connections: int, keep_alive_s: float, grace_s: int | None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                log_config=None,  # ours is in shared.observability.logs
                lifespan="off",
                access_log=False,
                timeout_keep_alive=round(keep_alive_s),
                timeout_graceful_shutdown=grace_s,
            )
        )
        self._max_connections = max_connections
        self._keep_alive_s = keep_alive_s
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle SIGHUP (a closed terminal) like uvicorn's SIGINT and SIGTERM: finish requests first."""
        number = getattr(signal, "SIGHUP", None)  # absent on Windows
        in_main = threading.current_thread() is threading.main_thread()  # only it receives signals
        if number is None or not in_main or signal.getsignal(number) is signal.SIG_IGN:
            with super().capture_signals():
                yield
            return
        before = signal.signal(number, self.handle_exit)
        try:
            with super().capture_signals():
                yield
        finally:
            signal.signal(number, before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        loop = asyncio.get_running_loop()
        for listener in sockets or ():
            listener.setblocking(False)
            self._tasks.append(loop.create_task(self._accept(listener)))
        self._tasks.append(loop.create_task(self._sweep()))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await super().shutdown(sockets)

    @property
    def _connections(self) -> Iterable[Connection]:
        return self.server_state.connections  # type: ignore[return-value]

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted = [(await loop.sock_accept(listener))[0]]
            except OSError as error:
                if error.errno in _NO_ROOM:
                    _log.warning("no connection can be accepted: %s", error.strerror)
                    self._close_idlest()
                    await asyncio.sleep(_NO_FILES_S)
                continue
            # Accept all that wait: under load each round of the event loop takes long.
            room = self._max_connections - len(self.server_state.connections)
            with suppress(OSError):
                while len(accepted) < room:
                    accepted.append(listener.accept()[0])
            try:
                await self._make_room(len(accepted))
            except asyncio.CancelledError:
                for each in accepted:
                    each.close()
                raise
            await asyncio.gather(*(self._serve_connection(each) for each in accepted))

    async def _make_room(self, connections: int) -> None:
        while len(self.server_state.connections) + connections > self._max_connections:
            self._changed.clear()
            self._close_idlest()
            await self._changed.wait()

    async def _serve_connection(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()

        def protocol() -> Connection:
            return Connection(self._changed, self.config, self.server_state, {}, loop)

        try:
            accepted.setblocking(False)
            await loop.connect_accepted_socket(protocol, accepted)
        except OSError:  # it has disconnected
            accepted.close()

    def _close_idlest(self) -> bool:
        """Close the connection that has been idle for longest. Returns whether there was one."""
        idle = [each for each in self._connections if each.is_idle and not each.is_closing]
        if not idle:
            return False
        min(idle, key=lambda each: each.idle_since).drop()
        return True

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = monotonic()
            for connection in list(self._connections):
                connection.close_if_expired(now, self._keep_alive_s)
