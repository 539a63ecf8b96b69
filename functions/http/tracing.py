"""What others are told of requests: a span for each, and where spans, logs and metrics go.

Does not know what a request is about; shared.observability.azure knows where in Azure things go.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.http.admission import PROBES
from shared.context import request_id, trace


class Traced:
    """ASGI middleware: each HTTP request to `app`, but for probes, is a span of its caller's trace.

    What probes ask, every few seconds and for ever, is not worth its storage.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        with trace.serving(_traceparent(scope)) as span:
            span.labels["request_id"] = request_id.current()

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.status = message["status"]
                await send(message)

            try:
                await self._app(scope, receive, noting)
            finally:
                # The route, because a path can hold whatever a caller puts there.
                route = getattr(scope.get("route"), "path_format", "(no route)")
                span.name = f"{scope['method']} {route}"


def _traceparent(scope: Scope) -> str:
    """The caller's, or else that of the Functions host.

    The host continues the caller's trace in a span of its own, but does not send it (host.json): as a
    parent it would be missing, and our request would hang on nothing.
    """
    context = scope.get("azure_functions.trace_context")
    return str(Headers(scope=scope).get(trace.HEADER) or getattr(context, "trace_parent", ""))
