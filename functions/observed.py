"""What others are told of requests: a span for each, and where spans, logs and metrics go.

Does not know what a request is about; shared.azure_export knows where in Azure things go.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.admission import PROBES
from shared import request_id, telemetry, trace
from shared.settings import Settings


class Observed:
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
                route = getattr(scope.get("route"), "path", "(no route)")
                span.name = f"{scope['method']} {route}"


def start_export(settings: Settings) -> None:
    """Begin to send this process's telemetry to Azure, if it is told where. Raises Misconfigured."""
    if settings.applicationinsights_connection_string:
        # Imported here: it takes half a second, and outside of Azure nobody needs it.
        from shared.azure_export import AzureExport
        from shared.telemetry_auth import credential_of

        AzureExport(
            settings.applicationinsights_connection_string,
            settings.role,
            telemetry.PROCESS,
            credential=credential_of(settings.applicationinsights_authentication_string),
        ).start()


def _traceparent(scope: Scope) -> str:
    """The caller's, or else that of the Functions host.

    The host continues the caller's trace in a span of its own, but does not send it (host.json): as a
    parent it would be missing, and our request would hang on nothing.
    """
    context = scope.get("azure_functions.trace_context")
    return str(Headers(scope=scope).get(trace.HEADER) or getattr(context, "trace_parent", ""))
