"""Every answer names its request: by the caller's name for it, or by one that is made."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import uuid

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from functions.api.app import _refuse
from functions.backend.app import create_app
from functions.http.request_ids import RequestIds
from shared.backends.http import HttpBackend
from shared.contracts import EmbedRequest
from shared.errors import Overloaded
from shared.observability import logs
from shared.observability.metrics import Telemetry
from shared.settings import Settings
from tests.apps import router_client
from tests.fakes.backend import FakeBackend
from tests.fakes.inference import FakeInference
from tests.sockets import serving

pytestmark = pytest.mark.anyio

ASKED = "7f3c.a-b_c:1~2=3+4/5@6"
GOOD = {"model": "mini", "input": "a"}


@pytest.mark.parametrize(
    ("method", "path", "status", "settings"),
    [
        ("POST", "/v1/embeddings", 200, {}),
        ("POST", "/embed", 422, {}),
        ("GET", "/health", 200, {}),
        ("HEAD", "/health", 200, {}),
        ("GET", "/ready", 200, {}),
        ("GET", "/metrics", 200, {}),
        ("GET", "/docs", 200, {}),
        ("GET", "/docs/none.js", 404, {}),
        ("GET", "/openapi.json", 200, {}),
        ("GET", "/v1/models", 200, {}),
        ("GET", "/v1/models/none", 404, {}),
        ("GET", "/none", 404, {}),
        ("GET", "/v1/embeddings", 405, {}),
        ("OPTIONS", "/v1/embeddings", 405, {}),
        ("POST", "/v1/embeddings", 413, {"max_body_bytes": 3}),
        ("POST", "/v1/embeddings", 401, {"api_key_hashes": (hashlib.sha256(b"x").hexdigest(),)}),
    ],
)
async def test_every_answer_names_its_request(
    method: str, path: str, status: int, settings: dict[str, object]
) -> None:
    """Answers, refusals of a middleware, probes, documents: as the caller calls it, else anew."""
    async with router_client(FakeBackend(), **settings) as client:
        told = await client.request(method, path, json=GOOD, headers={"x-request-id": ASKED})
        made = [await client.request(method, path, json=GOOD) for _ in range(2)]
    assert [response.status_code for response in (told, *made)] == [status] * 3
    assert told.headers.get_list("x-request-id") == [ASKED]
    ids = [uuid.UUID(response.headers["x-request-id"]) for response in made]
    assert ids[0] != ids[1]


async def test_a_request_that_is_not_let_in_is_named_too() -> None:
    """429 comes from before the routes."""

    class Full(FakeBackend):
        def check(self) -> None:
            raise Overloaded("full", retry_after_s=1.0)

    async with router_client(Full()) as client:
        response = await client.post("/v1/embeddings", json=GOOD, headers={"x-request-id": ASKED})
    assert (response.status_code, response.headers["x-request-id"]) == (429, ASKED)


@pytest.mark.parametrize(
    ("request_id", "azures", "expected", "returned"),
    [
        (ASKED, None, ASKED, None),
        ("a" * 128, None, "a" * 128, None),
        (ASKED, "azure-1", ASKED, "azure-1"),
        (None, "azure-1", "azure-1", "azure-1"),
        ("", "azure-1", "azure-1", "azure-1"),
        ("not sane", "azure-1", "azure-1", "azure-1"),
        (None, None, None, None),
        ("", None, None, None),
        ("a" * 129, None, None, None),
        ("with a space", None, None, None),
        ("tab\there", None, None, None),
        ('quote"', None, None, None),
        ("<script>", None, None, None),
        ("a,b", None, None, None),
        ("a;b", None, None, None),
        ("é", None, None, None),
        ("{}", None, None, None),
        ("a" * 20_000, None, None, None),
        (ASKED, "not sane", ASKED, None),
    ],
)
async def test_what_is_sane_comes_back_and_what_is_not_is_replaced(
    request_id: str | None, azures: str | None, expected: str | None, returned: str | None
) -> None:
    """expected: None: a new one. Azure's header comes back as it came, or not at all."""
    told = {"x-request-id": request_id, "x-ms-client-request-id": azures}
    given = httpx.Headers({k: v for k, v in told.items() if v is not None}, encoding="utf-8")
    async with router_client(FakeBackend()) as client:
        headers = (await client.get("/v1/models", headers=given)).headers
    assert headers.get("x-ms-client-request-id") == returned
    if expected is None:
        uuid.UUID(headers["x-request-id"])
    else:
        assert headers["x-request-id"] == expected


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_backends_and_every_log_line_have_it(
    log_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The router's caller named it; the backend breaks, and says so under the same name."""
    inference = FakeInference()
    inference.error = RuntimeError("broken")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines("cpu") if log_format == "json" else logs.Text())
    logger = logging.getLogger("functions.http.caller")
    logger.addHandler(handler)
    app = create_app(Settings(role="cpu"), inference, Telemetry(CollectorRegistry()))
    try:
        with serving(app) as port:
            backend = HttpBackend(f"http://127.0.0.1:{port}")
            asked = EmbedRequest("mini", ("a",))

            class Remote(FakeBackend):
                async def _receive(self, request: object) -> None:
                    try:
                        await backend.run(asked)
                    finally:
                        await backend.close()

            async with router_client(Remote()) as client:
                await client.post("/v1/embeddings", json=GOOD, headers={"x-request-id": ASKED})
    finally:
        logger.removeHandler(handler)
    (line,) = stream.getvalue().splitlines()[:1]
    assert ASKED in line
    if log_format == "json":
        assert json.loads(line)["request_id"] == ASKED


async def test_an_app_that_breaks_is_answered_with_a_name() -> None:
    """Not by the server's own 500, and nothing internal is in it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("secret")

    transport = httpx.ASGITransport(RequestIds(app, _refuse))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/embed", headers={"x-request-id": ASKED})
    assert (response.status_code, response.headers["x-request-id"]) == (500, ASKED)
    assert response.json()["error"] == "internal error"
