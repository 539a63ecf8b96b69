"""Response headers that keep browsers and proxies from caching or leaking a URL that holds a key.

?code=KEY serves tools that cannot set a header; but URLs end up in histories, caches and Referer
headers. Does not know keys or responses.
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
    """ASGI middleware: adds HEADERS to responses to the requests that `applies` selects."""

    def __init__(self, app: ASGIApp, applies: Callable[[Scope], bool]) -> None:
        self._app = app
        self._applies = applies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._applies(scope):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def has_key_in_address(scope: Scope) -> bool:
    """Whether the query has ?code=, valid or not: a mistyped key is confidential too."""
    query = scope["query_string"]
    return bool(query) and "code" in QueryParams(query)
