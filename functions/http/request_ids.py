"""Gives each request an id, the caller's or a new one, in the response and in every log line.

The outermost middleware, so that every response has it. Does not know operations.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.context import request_id
from shared.errors import BlitzError, Unavailable
from shared.observability.logs import log_failure

_log = logging.getLogger(__name__)


class RequestIds:
    """ASGI middleware: x-request-id on every response.

    An exception of `app` is logged under that id and answered by `refuse` (path, error -> response). So
    is cancellation by a stopping server.
    """

    def __init__(self, app: ASGIApp, refuse: Callable[[str, BlitzError], Response]) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        azures = headers.get(request_id.AZURE_HEADER, "")
        chosen = request_id.choose(headers.get(request_id.HEADER, ""), azures)
        begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers[request_id.HEADER] = chosen
                if request_id.is_sane(azures):
                    headers[request_id.AZURE_HEADER] = azures
            await send(message)

        with request_id.working_on(chosen):
            failure: BlitzError
            try:
                await self._app(scope, receive, send_with_id)
                return
            except asyncio.CancelledError:
                failure = Unavailable("the service is stopping", retry_after_s=1.0)
                if begun:  # the server closes an incomplete response
                    _log.warning("response aborted: the service is stopping and the caller reads slowly")
                    return
            except Exception as error:
                log_failure(_log, "unexpected error", error)
                failure = BlitzError("internal error")
                if begun:
                    raise
            await self._refuse(scope["path"], failure)(scope, receive, send_with_id)
