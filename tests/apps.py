"""The router and a backend's app in process, over fakes, and the ways to ask them."""

from __future__ import annotations

import json
from typing import Any, cast

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from functions.api.app import create_app
from shared.models.catalogue import Catalogue
from shared.observability.metrics import Telemetry
from shared.settings import Settings
from tests.fakes.backend import FakeBackend


def router_app(backend: FakeBackend, **settings: Any) -> FastAPI:
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
