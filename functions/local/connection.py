"""A connection of the local server: uvicorn's over httptools, and limits on what a caller makes it hold.

Does not know other connections, or what is served.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEADERS_S = 20.0
"""Time limit from a request's first byte to the end of its headers."""
STALLED_S, STALLED_BYTES = 60.0, 64 * 1024
"""A caller that reads no more than this of its response in this time is disconnected."""
UNFINISHED_BYTES = 64 * 1024
"""Of a head, a trailer or a chunk's size that does not end: the parser keeps it, and has no limit."""
PIPELINED = 16
"""Requests that may wait behind the one in progress; each costs a hundred times its bytes."""

_TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_LONG = "The head of this request is too long."


class Connection(HttpToolsProtocol):
    """Tracks how long it has been idle, waiting for headers, or for its caller to read.

    changed: set when it closes or becomes idle. Its clock is not the loop's, which in uvloop counts
    milliseconds: of two that became idle in one, the wrong one could be closed.
    """

    def __init__(self, changed: asyncio.Event, *arguments: Any) -> None:
        super().__init__(*arguments)
        # Two lengths reach functions.http.framing, which refuses them in the words of the dialect.
        # What comes after a request that ends its connection is ignored.
        self.parser.set_dangerous_leniencies(lenient_chunked_length=True, lenient_data_after_close=True)
        self._changed = changed
        self._running: RequestResponseCycle | None = None
        self._unfinished_bytes = 0
        self._in_head = False
        self.idle_since = monotonic()
        self._headers_since: float | None = None
        self._unsent = (0, self.idle_since)

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_closing(self) -> bool:
        return self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        if self.is_idle and self._headers_since is None:
            self._headers_since = monotonic()
        self._unfinished_bytes += len(data)
        super().data_received(data)
        if self._unfinished_bytes > UNFINISHED_BYTES and not self.is_closing:
            self.send_400_response(_TOO_LONG)
        if not self.is_idle:
            self._headers_since = None

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are not headers: nobody has checked them
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._unfinished_bytes = False, 0
        super().on_headers_complete()
        if len(self.pipeline) > PIPELINED:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self._unfinished_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unfinished_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.idle_since = monotonic()
        self._headers_since = None
        super().on_response_complete()
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn tells only the request that came last.
        for cycle in (self._running, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        self._changed.set()

    def close_if_expired(self, now: float, keep_alive_s: float) -> None:
        """Close it if the limit for its current wait has passed."""
        if self._is_stalled(now):
            self.transport.abort()
        elif self.is_closing or not self.is_idle:
            return
        elif self._headers_since is not None and now - self._headers_since > HEADERS_S:
            if self.cycle is None:
                self.transport.write(_TIMED_OUT)
            self.drop()
        elif now - self.idle_since > keep_alive_s:
            self.drop()

    def drop(self) -> None:
        """Close it after sending what is buffered."""
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _is_stalled(self, now: float) -> bool:
        """Whether the caller reads its response too slowly; the unread rest occupies our memory."""
        unsent, (before, since) = self.transport.get_write_buffer_size(), self._unsent
        if unsent == 0 or unsent > before or before - unsent > STALLED_BYTES:
            self._unsent = unsent, now
            return False
        return now - since > STALLED_S
