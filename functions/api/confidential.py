"""Tells browsers and proxies to keep no answer to a request whose address holds a key, nor pass it on.

Does not know keys, nor what is answered. A key as ?code=KEY is for tools that can set no header; an
address gets into histories, caches and the Referer of whatever a page leads to.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import MutableHeaders, QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Confidential:
    """ASGI middleware: HEADERS for the answers to requests that `applies` to."""

    def __init__(self, app: ASGIApp, applies: Callable[[Scope], bool]) -> None:
        self._app = app
        self._applies = applies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._applies(scope):
            await self._app(scope, receive, send)
            return

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, telling)


def has_key_in_address(scope: Scope) -> bool:
    """Whether there is a ?code=, right or not: a mistyped key is nobody else's business either."""
    query = scope["query_string"]
    return bool(query) and "code" in QueryParams(query)
