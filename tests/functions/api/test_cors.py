"""Browsers: which pages may ask, what their preflight is told, and what they may read of the answer."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest

from shared.dialects.operations import PATHS
from tests.apps import router_client
from tests.fakes.backend import FakeBackend

pytestmark = pytest.mark.anyio

KEY = "key-of-a-first-caller"
HASHES = (hashlib.sha256(KEY.encode()).hexdigest(),)
PAGE = "https://app.example"
BODY = {"model": "mini", "input": "a"}
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


def browser(**settings: Any) -> httpx.AsyncClient:
    return router_client(FakeBackend("mini"), **settings)


@pytest.mark.parametrize("hashes", [(), HASHES])
@pytest.mark.parametrize("path", [*PATHS, "/v1/models", "/v1/embeddings/"])
async def test_a_preflight_needs_no_key(path: str, hashes: tuple[str, ...]) -> None:
    """It says with what a page may come, and nothing of the path."""
    async with browser(cors_origins=(PAGE, "http://localhost:3000"), api_key_hashes=hashes) as client:
        response = await client.options(path, headers=PREFLIGHT)
    assert response.status_code == 200
    headers = response.headers
    assert headers["access-control-allow-origin"] == PAGE
    assert "POST" in headers["access-control-allow-methods"]
    for name in PREFLIGHT["access-control-request-headers"].split(","):
        assert name in headers["access-control-allow-headers"]
    assert "Origin" in headers["vary"]
    assert "access-control-allow-credentials" not in headers
    assert "x-request-id" in headers


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("POST", "/v1/embeddings", KEY, 200),
        ("POST", "/v1/embeddings", "wrong", 401),
        ("GET", "/v1/models", KEY, 200),
        ("GET", "/nothing", KEY, 404),
        ("OPTIONS", "/v1/embeddings", KEY, 405),
        ("OPTIONS", "/v1/embeddings", "wrong", 401),
        ("GET", "/health", "", 200),
    ],
)
async def test_a_page_reads_answers_and_refusals(method: str, path: str, key: str, status: int) -> None:
    """With the headers that are of use; a key is still needed for what is asked."""
    async with browser(cors_origins=(PAGE,), api_key_hashes=HASHES) as client:
        response = await client.request(
            method, path, json=BODY, headers={"origin": PAGE, "authorization": f"Bearer {key}"}
        )
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == PAGE
    exposed = response.headers["access-control-expose-headers"].lower()
    assert {"*", "x-request-id", "retry-after"} <= set(exposed.split(", "))
    assert "Origin" in response.headers["vary"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.evil", "null", f"{PAGE}:8443", ""]
)
async def test_another_page_is_let_read_nothing(origin: str) -> None:
    """Its preflight is refused, and its answer says nothing that a browser would go by."""
    async with browser(cors_origins=(PAGE,)) as client:
        refused = await client.options("/v1/embeddings", headers={**PREFLIGHT, "origin": origin})
        answered = await client.post("/v1/embeddings", json=BODY, headers={"origin": origin})
    assert refused.status_code == 400
    for response in (refused, answered):
        assert "access-control-allow-origin" not in response.headers
        assert "Origin" in response.headers["vary"]


async def test_a_star_lets_every_page_read() -> None:
    """The same for all, so that caches need not tell them apart."""
    async with browser(cors_origins=("*",), api_key_hashes=HASHES) as client:
        preflight = await client.options("/embed", headers=PREFLIGHT)
        answered = await client.get("/v1/models", headers={"origin": PAGE, "api-key": KEY})
        plain = await client.get("/v1/models", headers={"api-key": KEY})
    assert [each.status_code for each in (preflight, answered, plain)] == [200, 200, 200]
    assert answered.headers["access-control-allow-origin"] == "*"
    assert "vary" not in plain.headers


async def test_an_answer_to_nobodys_page_says_that_pages_get_others() -> None:
    """A cache would give it to a page otherwise, which then could not read it."""
    async with browser(cors_origins=(PAGE,)) as client:
        response = await client.get("/v1/models")
    assert response.headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in response.headers


async def test_without_the_setting_no_page_is_let_in() -> None:
    """A preflight is a method that is not there; with keys it needs one."""
    async with browser() as client:
        preflight = await client.options("/v1/embeddings", headers=PREFLIGHT)
        answered = await client.post("/v1/embeddings", json=BODY, headers={"origin": PAGE})
    assert (preflight.status_code, preflight.headers["allow"]) == (405, "POST")
    assert answered.status_code == 200
    for response in (preflight, answered):
        assert not any(name.startswith("access-control") for name in response.headers)
        assert "vary" not in response.headers
    async with browser(api_key_hashes=HASHES) as client:
        assert (await client.options("/v1/embeddings", headers=PREFLIGHT)).status_code == 401
