"""A name for each request: its caller's, or one that is made, in the answer and in each line of the log.

Does not know what is asked. Stands around everything else, so that no answer is without it.
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


class Identified:
    """ASGI middleware: x-request-id on every answer.

    What `app` raises is logged under that id and answered as `refuse` tells an error of a path. So is
    its cancellation, by a server that stops.
    """

    def __init__(self, app: ASGIApp, refuse: Callable[[str, BlitzError], Response]) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = Headers(scope=scope)
        azures = told.get(request_id.AZURE_HEADER, "")
        chosen = request_id.choose(told.get(request_id.HEADER, ""), azures)
        begun = False

        async def naming(message: Message) -> None:
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
                await self._app(scope, receive, naming)
                return
            except asyncio.CancelledError:
                failure = Unavailable("the service is stopping", retry_after_s=1.0)
                if begun:  # the server closes what is not complete
                    _log.warning("an answer breaks off: the service stops, and its caller was slow")
                    return
            except Exception as error:
                log_failure(_log, logging.ERROR, "a request failed", error)
                failure = BlitzError("internal error")
                if begun:
                    raise
            await self._refuse(scope["path"], failure)(scope, receive, naming)
