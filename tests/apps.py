"""The router and a backend's app in process, over fakes, and the ways to ask them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import quote

import httpx
from msgspec.structs import replace
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.types import ASGIApp

from functions.api.app import create_app
from functions.backend.app import create_app as create_backend_app
from functions.backend.build import build_inference
from shared.backends.base import Backend
from shared.contracts import DecodeRequest, EmbedRequest, PredictRequest, RerankRequest, TokenizeRequest
from shared.engines.cpu import capacity, open_cpu_engine
from shared.models.catalogue import Catalogue
from shared.models.store import open_store
from shared.observability.metrics import Telemetry
from shared.settings import Settings
from shared.wire import codec, messages
from tests.fakes.backend import FakeBackend
from tests.fakes.catalogue import embedder_and_labeller
from tests.fakes.inference import FakeInference, OverTheWire
from tests.patience import PATIENCE_S

JSON = "application/json"
MSGPACK = {"content-type": codec.CONTENT_TYPE}


def router_app(backend: FakeBackend, **settings: Any) -> Starlette:
    catalogue = cast(Catalogue, backend)
    return create_app(Settings(**settings), backend, catalogue, Telemetry(CollectorRegistry()))


def router_client(backend: FakeBackend, **settings: Any) -> httpx.AsyncClient:
    app = router_app(backend, **settings)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def post(
    path: str, body: Any, backend: FakeBackend | None = None, **settings: Any
) -> httpx.Response:
    """One request to a fresh app; `body` bytes go as they are."""
    async with router_client(backend or FakeBackend(), **settings) as client:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await client.post(path, content=content, headers={"content-type": "application/json"})


WIRE_BODY = messages.pack_request(EmbedRequest("m", ("abc", "a")))
WIRE_BODIES: dict[str, bytes] = {
    "/embed": WIRE_BODY,
    "/rerank": messages.pack_request(RerankRequest("m", "q", ("abc", "a"))),
    "/predict": messages.pack_request(PredictRequest("m", ("abc", ("a", "b")))),
    "/tokenize": messages.pack_request(TokenizeRequest("m", ("abc", ""), special_tokens=False)),
    "/decode": messages.pack_request(DecodeRequest("m", ((97, 98), (99,)), skip_special_tokens=False)),
}


def backend_app(inference: Backend, **changes: Any) -> Starlette:
    settings = replace(Settings(warm_models=("m",), max_body_bytes=1000), **changes)
    return create_backend_app(settings, inference, Telemetry(CollectorRegistry()))


def backend_client(inference: FakeInference, **changes: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(backend_app(inference, **changes))
    return httpx.AsyncClient(transport=transport, base_url="http://backend")


def wire_router(**settings: Any) -> ASGIApp:
    """Its requests are packed and read again, as on their way to a backend of another process."""
    catalogue = cast(Catalogue, embedder_and_labeller())
    return create_app(Settings(**settings), OverTheWire(), catalogue, Telemetry(CollectorRegistry()))


def wire_backend() -> ASGIApp:
    return backend_app(FakeInference(), max_body_bytes=2_000_000)


async def ask(
    app: ASGIApp,
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    content_type: str = JSON,
    query: bytes = b"",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> tuple[int, bytes]:
    """Status and body of one request, its path and headers as they are: no client makes them sane."""
    sent: list[Any] = []
    answered = asyncio.Event()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "server": ("router", 80),
        "root_path": "",
        "method": method,
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": query,
        "headers": [(b"content-type", content_type.encode()), *headers],
    }
    await asyncio.wait_for(app(scope, receive, send), PATIENCE_S)
    answered.set()
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@asynccontextmanager
async def client_over_models(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    inference = build_inference(settings, "cpu", open_cpu_engine, capacity())
    app = create_app(
        settings,
        inference,
        Catalogue(open_store(settings), ("cpu",)),
        Telemetry(CollectorRegistry()),
    )
    transport = httpx.ASGITransport(app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client
    finally:
        await inference.close()
