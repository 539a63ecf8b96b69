"""The HTTP API of a backend, CPU or GPU: inference in the wire format, for the router only.

Bodies are `shared.wire.codec`; /ready, which people read, is JSON. Does not know dialects or engines.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from functions.http.admission import Admission, Admitted
from functions.http.caller import (
    LARGE_BODY_BYTES,
    Endpoint,
    in_thread_if,
    read_body,
    while_connected,
    wrap_endpoint,
)
from functions.http.framing import RejectAmbiguousLength
from functions.http.readiness import readiness_response
from functions.http.request_ids import RequestIds
from functions.http.startup import log_request_limits
from functions.http.tracing import Traced
from shared.backends.base import Backend
from shared.cards import Device
from shared.contracts import REQUESTS, AnyRequest
from shared.errors import BlitzError, Unauthorized, UnsupportedMediaType
from shared.observability import metrics
from shared.observability.metrics import Telemetry
from shared.observability.start import start_export
from shared.settings import Settings
from shared.wire import codec, messages

if TYPE_CHECKING:
    import azure.functions as func


class _Endpoints:
    def __init__(self, settings: Settings, inference: Backend, metrics: Telemetry) -> None:
        self._settings = settings
        self._inference = inference
        self._metrics = metrics

    async def run(self, request: Request, kind: type[AnyRequest]) -> Response:
        """Read a request of type `kind`, run it, pack its result."""
        began = time.perf_counter()
        self._check_secret(request)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != codec.CONTENT_TYPE:
            raise UnsupportedMediaType(f"send {codec.CONTENT_TYPE} as Content-Type")
        limit = self._settings.max_body_bytes
        data = await read_body(request, limit)
        unpack = partial(messages.unpack_request, data, kind, max_bytes=limit)
        asked = await in_thread_if(len(data) > LARGE_BODY_BYTES, unpack)
        inputs = len(asked.texts)
        self._metrics.request_arrived(inputs)
        result = await while_connected(request, self._inference.run(asked))
        content = messages.pack_result(result)
        self._metrics.request_succeeded(
            model=result.model,
            inputs=inputs,
            tokens=result.total_tokens,
            duration_s=time.perf_counter() - began,
            timings=result.timings,
            truncated=len(result.cut),
        )
        return Response(content, media_type=codec.CONTENT_TYPE)

    async def health(self, request: Request) -> Response:
        """Liveness of this process; /ready covers models."""
        return Response()

    async def ready(self, request: Request) -> Response:
        self._check_secret(request)
        states = await self._inference.states()
        memory = self._metrics.gpu_memory()
        more = {"gpu_memory": memory} if memory else {}
        return readiness_response(states, self._settings.names_to_warm, self._metrics, **more)

    async def metrics(self, request: Request) -> Response:
        self._check_secret(request)
        return Response(self._metrics.render(), media_type=metrics.CONTENT_TYPE)

    def _check_secret(self, request: Request) -> None:
        """Check the secret shared with the router, for deployments without Entra tokens."""
        expected = f"Bearer {self._settings.backend_secret}".encode()
        given = request.headers.get("authorization", "").encode()
        if self._settings.backend_secret and not hmac.compare_digest(expected, given):
            raise Unauthorized("send the backend's secret as a Bearer token")


def create_app(
    settings: Settings, inference: Backend, metrics: Telemetry = metrics.PROCESS
) -> Starlette:
    """A backend's ASGI app over `inference`. No lifespan."""
    endpoints = _Endpoints(settings, inference, metrics)
    table: list[tuple[str, str, Endpoint]] = [
        *(("POST", f"/{kind.operation}", partial(endpoints.run, kind=kind)) for kind in REQUESTS),
        ("GET", "/health", endpoints.health),
        ("GET", "/ready", endpoints.ready),
        ("GET", "/metrics", endpoints.metrics),
    ]
    return Starlette(
        routes=[
            Route(
                path,
                wrap_endpoint(endpoint, _error_response, metrics, settings.request_timeout_s),
                methods=[method],
            )
            for method, path, endpoint in table
        ],
        middleware=[
            Middleware(RequestIds, refuse=_refuse),
            Middleware(Traced),
            Middleware(RejectAmbiguousLength, refuse=_refuse, metrics=metrics),
            Middleware(
                Admitted,
                admission=Admission(
                    max_requests=settings.max_requests, max_bytes=settings.max_pending_bytes
                ),
                backend=inference,
                asks_backend=lambda path: True,
                refuse=_refuse,
                metrics=metrics,
            ),
        ],
    )


def function_app(
    settings: Settings, device: Device, create_inference: Callable[[Settings], Backend]
) -> func.AsgiFunctionApp:
    """A backend as an Azure Functions app, with bulk triggers. The platform authenticates callers."""
    import azure.functions as func  # not loaded outside Functions

    from functions.bulk.steps import build_bulk
    from functions.bulk.triggers import register
    from shared.storage.connect import open_storage

    start_export(settings)
    log_request_limits(settings)
    inference = create_inference(settings)
    app = func.AsgiFunctionApp(
        app=create_app(settings, inference), http_auth_level=func.AuthLevel.ANONYMOUS
    )
    register(app, build_bulk(settings, open_storage(settings), inference), device)
    return app


def _refuse(path: str, error: BlitzError) -> Response:
    return _error_response(error)


def _error_response(error: BlitzError) -> Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return Response(messages.pack_error(error), error.status, headers, codec.CONTENT_TYPE)
