"""Refuses requests with both Content-Length and Transfer-Encoding: a defence against request smuggling.

The local server lets them through and uses the chunks. A proxy in front of us that uses the length would
take the rest of the body for another caller's request. Does not know operations.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.errors import BlitzError, InvalidInput
from shared.observability.metrics import Telemetry

_LENGTHS = frozenset({b"content-length", b"transfer-encoding"})


class RejectAmbiguousLength:
    """ASGI middleware: answers them with 400 and closes the connection. refuse: makes it."""

    def __init__(
        self, app: ASGIApp, refuse: Callable[[str, BlitzError], Response], metrics: Telemetry
    ) -> None:
        self._app = app
        self._refuse = refuse
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not {name for name, _ in scope["headers"]} >= _LENGTHS:
            await self._app(scope, receive, send)
            return
        error = InvalidInput("send Content-Length or Transfer-Encoding, not both (RFC 9112, 6.1)")
        self._metrics.request_failed(error.code)
        response = self._refuse(scope["path"], error)
        response.headers["connection"] = "close"
        await response(scope, receive, send)
