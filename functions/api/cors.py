"""CORS: lets web pages of the configured origins use the service from a browser.

Does not know keys: a browser's preflight carries none.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "HEAD", "POST", "DELETE")
MAX_AGE_S = 3600


class Cors:
    """ASGI middleware: lets pages of `origins` ("*": any) read all responses, refusals included.

    It answers preflights itself, so it runs before the key check.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._for_browsers = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=("*",),
            # A page sets the key header explicitly; there are no cookies.
            allow_credentials=False,
            # Some browsers do not support the wildcard.
            expose_headers=("*", "x-request-id", "retry-after", "retry-after-ms"),
            max_age=MAX_AGE_S,
        )
        self._differs = "*" not in origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif "origin" in Headers(scope=scope):
            await self._for_browsers(scope, receive, send)
        else:
            await self._app(scope, receive, self._varying(send))

    def _varying(self, send: Send) -> Send:
        """Add Vary: Origin, or a cache could serve a page a response without CORS headers."""

        async def send_with_vary(message: Message) -> None:
            if message["type"] == "http.response.start" and self._differs:
                MutableHeaders(scope=message).add_vary_header("Origin")
            await send(message)

        return send_with_vary
