"""Distributed tracing: a span for each request.

Does not know operations; shared.observability.azure exports spans.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.http.admission import PROBES
from shared.context import request_id, trace


class Traced:
    """ASGI middleware: a span of the caller's trace for each HTTP request except probes.

    Probes arrive every few seconds, and their spans are not worth the storage.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        with trace.serving(_traceparent(scope)) as span:
            span.labels["request_id"] = request_id.current()

            async def send_recording_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.status = message["status"]
                await send(message)

            try:
                await self._app(scope, receive, send_recording_status)
            finally:
                # The route, because a path may contain anything.
                route = getattr(scope.get("route"), "path_format", "(no route)")
                span.name = f"{scope['method']} {route}"


def _traceparent(scope: Scope) -> str:
    """The caller's traceparent, or else that of the Functions host.

    The host continues the caller's trace in a span of its own, but does not export it (host.json): with
    the host's span as its parent, ours would be an orphan.
    """
    context = scope.get("azure_functions.trace_context")
    return str(Headers(scope=scope).get(trace.HEADER) or getattr(context, "trace_parent", ""))
