"""Which web pages may use the service from a browser: CORS, where a setting names their origins.

Does not know keys: a browser sends none with the question whether it may send one.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "HEAD", "POST", "DELETE")
MAX_AGE_S = 3600


class Cors:
    """ASGI middleware: lets pages of `origins` ("*": of all) read the answers, refusals too.

    It answers a browser's preflight itself, so it stands before whatever asks for keys.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._for_browsers = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=("*",),
            # Keys come in headers that a page sets, never of themselves as cookies do.
            allow_credentials=False,
            # Some browsers do not read the star.
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
        """Or a cache would give a page the answer that something else got, and no page may read that."""

        async def vary(message: Message) -> None:
            if message["type"] == "http.response.start" and self._differs:
                MutableHeaders(scope=message).add_vary_header("Origin")
            await send(message)

        return vary
