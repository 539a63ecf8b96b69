"""What the CPU and the GPU app serve: inference over HTTP in the wire format, for the router alone.

Does not know dialects or engines: bodies are `shared.wire`; what people read (/ready) is JSON.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from functions.admission import Admission, Admitted
from functions.caller import (
    LARGE_BODY_BYTES,
    Endpoint,
    answering,
    off_loop_if,
    read_body,
    while_connected,
)
from functions.framing import OneLength
from functions.identified import Identified
from functions.observed import Observed, start_export
from functions.readiness import say_ready
from shared import telemetry, wire
from shared.backend_client import Backend
from shared.contracts import (
    EmbedRequest,
    PredictRequest,
    RerankRequest,
    Result,
    TokenizeRequest,
    TokenizeResult,
    texts_of,
)
from shared.errors import BlitzError, Unauthorized, UnsupportedMediaType
from shared.manifest import Device
from shared.settings import Settings
from shared.telemetry import Telemetry

if TYPE_CHECKING:
    import azure.functions as func


class _Endpoints:
    def __init__(self, settings: Settings, inference: Backend, metrics: Telemetry) -> None:
        self._settings = settings
        self._inference = inference
        self._metrics = metrics

    async def run(
        self, request: Request, kind: type[Any], work: Callable[[Any], Awaitable[Result]]
    ) -> Response:
        """Read a `kind` of request, do `work`, pack its result."""
        began = time.perf_counter()
        self._check_secret(request)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != wire.CONTENT_TYPE:
            raise UnsupportedMediaType(f"send {wire.CONTENT_TYPE} as Content-Type")
        limit = self._settings.max_body_bytes
        data = await read_body(request, limit)
        unpack = partial(wire.unpack_request, data, kind, max_bytes=limit)
        asked = await off_loop_if(len(data) > LARGE_BODY_BYTES, unpack)
        inputs = len(texts_of(asked))
        self._metrics.request_arrived(inputs)

        async def answer() -> Result:
            return await work(asked)

        result = await while_connected(request, answer())
        content = wire.pack_result(result)
        self._metrics.request_succeeded(
            model=result.model,
            inputs=inputs,
            tokens=result.total_tokens,
            duration_s=time.perf_counter() - began,
            timings=result.timings,
            truncated=0 if isinstance(result, TokenizeResult) else len(result.cut),
        )
        return Response(content, media_type=wire.CONTENT_TYPE)

    async def health(self, request: Request) -> Response:
        """Liveness: this process answers. It says nothing of models, see /ready."""
        return Response()

    async def ready(self, request: Request) -> Response:
        self._check_secret(request)
        states = await self._inference.states()
        memory = self._metrics.gpu_memory()
        more = {"gpu_memory": memory} if memory else {}
        return say_ready(states, self._settings.warm_models, self._metrics, **more)

    async def metrics(self, request: Request) -> Response:
        self._check_secret(request)
        return Response(self._metrics.render(), media_type=telemetry.CONTENT_TYPE)

    def _check_secret(self, request: Request) -> None:
        """Where there is no platform to ask for an Entra token, a secret that the router shares."""
        expected = f"Bearer {self._settings.backend_secret}".encode()
        given = request.headers.get("authorization", "").encode()
        if self._settings.backend_secret and not hmac.compare_digest(expected, given):
            raise Unauthorized("send the backend's secret as a Bearer token")


def create_app(
    settings: Settings, inference: Backend, metrics: Telemetry = telemetry.PROCESS
) -> Starlette:
    """A backend's ASGI app over `inference`. No lifespan."""
    endpoints = _Endpoints(settings, inference, metrics)
    table: list[tuple[str, str, Endpoint]] = [
        ("POST", "/embed", partial(endpoints.run, kind=EmbedRequest, work=inference.embed)),
        ("POST", "/rerank", partial(endpoints.run, kind=RerankRequest, work=inference.rerank)),
        ("POST", "/predict", partial(endpoints.run, kind=PredictRequest, work=inference.predict)),
        ("POST", "/tokenize", partial(endpoints.run, kind=TokenizeRequest, work=inference.tokenize)),
        ("GET", "/health", endpoints.health),
        ("GET", "/ready", endpoints.ready),
        ("GET", "/metrics", endpoints.metrics),
    ]
    return Starlette(
        routes=[
            Route(
                path,
                answering(endpoint, _error_response, metrics, settings.request_timeout_s),
                methods=[method],
            )
            for method, path, endpoint in table
        ],
        middleware=[
            Middleware(Identified, refuse=_refuse),
            Middleware(Observed),
            Middleware(OneLength, refuse=_refuse, metrics=metrics),
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
    """As an Azure Functions app, bulk work included; who may call it is the platform's business."""
    import azure.functions as func  # outside Functions these stay unloaded

    from functions.bulk_steps import build_bulk
    from functions.bulk_triggers import register
    from shared.bulk.connection import open_storage

    start_export(settings)
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
    return Response(wire.pack_error(error), error.status, headers, wire.CONTENT_TYPE)
