"""The CPU backend's app: inference over HTTP in the wire format, for the router alone.

Does not know dialects: bodies are `shared.wire`; what people read (/models, /ready) is JSON.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from functions.caller import LARGE_BODY_BYTES, log_without_content, read_body, while_connected
from shared import telemetry, wire
from shared.backend_client import Backend
from shared.errors import BlitzError, UnsupportedMediaType
from shared.settings import Settings
from shared.telemetry import Telemetry

if TYPE_CHECKING:
    import azure.functions as func

JSON = "application/json"
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


class _Endpoints:
    def __init__(self, settings: Settings, inference: Backend, metrics: Telemetry) -> None:
        self._settings = settings
        self._inference = inference
        self._metrics = metrics

    def answering(self, endpoint: Endpoint) -> Endpoint:
        """`endpoint`, with every error packed for the router and nothing internal in it."""

        async def answer(request: Request) -> Response:
            try:
                return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except BlitzError as raised:
                error = raised
            except Exception as raised:
                log_without_content(raised)
                error = BlitzError("internal error")
            self._metrics.request_failed(error.code)
            headers = {}
            if error.retry_after_s is not None:
                headers["retry-after"] = str(math.ceil(error.retry_after_s))
            return Response(wire.pack_error(error), error.status, headers, wire.CONTENT_TYPE)

        return answer

    async def embed(self, request: Request) -> Response:
        began = time.perf_counter()
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != wire.CONTENT_TYPE:
            raise UnsupportedMediaType(f"send {wire.CONTENT_TYPE} as Content-Type")
        limit = self._settings.max_body_bytes
        data = await read_body(request, limit)
        if len(data) > LARGE_BODY_BYTES:
            embed_request = await asyncio.to_thread(wire.unpack_embed_request, data, max_bytes=limit)
        else:
            embed_request = wire.unpack_embed_request(data, max_bytes=limit)
        self._metrics.request_arrived(len(embed_request.inputs))
        result = await while_connected(
            request, self._inference.embed(embed_request), self._settings.request_timeout_s
        )
        content = wire.pack_embed_result(result)
        self._metrics.request_succeeded(
            model=result.model,
            inputs=len(embed_request.inputs),
            tokens=result.total_tokens,
            duration_s=time.perf_counter() - began,
            timings=result.timings,
        )
        return Response(content, media_type=wire.CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        return Response(msgspec.json.encode(await self._inference.cards()), media_type=JSON)

    async def health(self, request: Request) -> Response:
        """Liveness: this process answers. It says nothing of models, see /ready."""
        return Response()

    async def ready(self, request: Request) -> Response:
        """200 once every model of `warm_models` is warm, else 503; the body lists all states."""
        states = await self._inference.states()
        warm = {state.name for state in states if state.state == "warm"}
        ready = warm.issuperset(self._settings.warm_models)
        body = msgspec.json.encode({"ready": ready, "models": states})
        return Response(body, 200 if ready else 503, media_type=JSON)

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.render(), media_type=telemetry.CONTENT_TYPE)


def create_app(
    settings: Settings,
    inference: Backend | None = None,
    metrics: Telemetry = telemetry.PROCESS,
) -> Starlette:
    """The backend's ASGI app; builds this process's inference unless given one. No lifespan."""
    if inference is None:
        from functions.inference import build_inference  # not needed, nor loaded, when it is given

        inference = build_inference(settings)
    endpoints = _Endpoints(settings, inference, metrics)
    table: list[tuple[str, str, Endpoint]] = [
        ("POST", "/embed", endpoints.embed),
        ("GET", "/models", endpoints.models),
        ("GET", "/health", endpoints.health),
        ("GET", "/ready", endpoints.ready),
        ("GET", "/metrics", endpoints.metrics),
    ]
    return Starlette(
        routes=[
            Route(path, endpoints.answering(endpoint), methods=[method])
            for method, path, endpoint in table
        ]
    )


def function_app(settings: Settings) -> func.AsgiFunctionApp:
    """The CPU backend as an Azure Functions app; who may call it is the platform's business."""
    import azure.functions as func  # outside Functions this stays unloaded

    return func.AsgiFunctionApp(app=create_app(settings), http_auth_level=func.AuthLevel.ANONYMOUS)
