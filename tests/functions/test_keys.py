"""Keys: who gets past the router, what the others see, and where keys do not go."""

from __future__ import annotations

import hashlib
import io
import logging
from typing import cast

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from functions import keys
from functions.api import auth
from functions.api.app import create_app
from functions.api.key_list import owner_name
from functions.api.known_keys import KnownKeys
from shared.backends.base import Backend
from shared.backends.http import HttpBackend
from shared.contracts import EmbedRequest
from shared.dialects import openai
from shared.dialects.operations import PATHS, operations_at
from shared.errors import Unauthorized
from shared.models.catalogue import Catalogue
from shared.observability.metrics import Telemetry
from shared.settings import Settings
from shared.wire import messages
from tests.fakes.catalogue import embedder_and_labeller
from tests.fakes.inference import FakeInference

KEY, OTHER = "key-of-a-first-caller", "key-of-another-caller"
HASHES = tuple(hashlib.sha256(key.encode()).hexdigest() for key in (KEY, OTHER))
BODY = {"model": "m", "input": "a"}


def client_of(backend: Backend | None = None, hashes: tuple[str, ...] = HASHES) -> httpx.AsyncClient:
    app = create_app(
        Settings(api_key_hashes=hashes),
        backend or FakeInference(),
        cast(Catalogue, embedder_and_labeller()),
        Telemetry(CollectorRegistry()),
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router")


@pytest.mark.anyio
@pytest.mark.parametrize("key", [KEY, OTHER])
@pytest.mark.parametrize(
    ("header", "query"),
    [
        ("Authorization: Bearer {}", ""),
        ("authorization: bearer  {} ", ""),
        ("api-key: {}", ""),
        ("x-functions-key: {}", ""),
        ("", "?code={}"),
        ("", "?api-version=2024-10-21&code={}"),
        ("Authorization: Bearer placeholder-of-an-sdk", "?code={}"),
    ],
)
async def test_a_known_key_is_taken_from_wherever_clients_put_it(
    key: str, header: str, query: str
) -> None:
    """Each of several keys; a wrong key elsewhere in the request does not matter."""
    name, _, value = header.format(key).partition(": ")
    async with client_of() as client:
        url = "/v1/embeddings" + query.format(key)
        response = await client.post(url, json=BODY, headers={name: value} if name else {})
    assert response.status_code == 200
    assert response.json()["data"][0]["embedding"] == [1, 1]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({}, ""),
        ({"authorization": f"Bearer {KEY}x"}, ""),
        ({"authorization": f"Bearer {KEY[:-1]}"}, ""),
        ({"authorization": KEY}, ""),
        ({"authorization": f"Basic {KEY}"}, ""),
        ({"authorization": "Bearer"}, ""),
        ({"authorization": "Bearer "}, ""),
        ({"authorization": f"Bearer {KEY.upper()}"}, ""),
        ({"authorization": f"Bearer {HASHES[0]}"}, ""),
        ({"authorization": "Bearer \xff\xfe"}, ""),
        ({"api-key": ""}, ""),
        ({"x-api-key": KEY}, ""),
        ({"cookie": f"code={KEY}"}, ""),
        ({}, "?code="),
        ({}, f"?key={KEY}"),
        ({}, "?code=%ff%00"),
        ({}, f"?code={HASHES[0]}"),
        ({}, "?" + "code=x&" * 5_000),
    ],
)
async def test_anything_else_is_refused(headers: dict[str, str], query: str) -> None:
    """No key, a part of one, its hash, another place for it: 401, and no model is asked."""
    backend = FakeInference()
    async with client_of(backend) as client:
        given = httpx.Headers(headers, encoding="latin-1")
        response = await client.post(f"/v1/embeddings{query}", json=BODY, headers=given)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert not backend.asked


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "query", "owner"),
    [
        ({"api-key": KEY}, "", 0),
        ({"authorization": f"Bearer {OTHER}"}, "", 1),
        ({}, f"?code={OTHER}", 1),
        ({"authorization": "Bearer placeholder-of-an-sdk", "api-key": OTHER}, "", 1),
        ({"authorization": f"Bearer {KEY}", "api-key": OTHER}, "", 0),  # the first of two known ones
        ({"authorization": f"Bearer {KEY}", "blitz.owner": "0" * 16}, "", 0),
    ],
)
async def test_a_request_has_its_keys_owner(headers: dict[str, str], query: str, owner: int) -> None:
    """A name that tells neither the key nor its hash, and that no header can say."""
    owners = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        owners.append(auth.owner_of(scope))
        await Response()(scope, receive, send)

    metrics = Telemetry(CollectorRegistry())
    guarded = auth.RequireKey(app, KnownKeys(HASHES, None, metrics), metrics)
    transport = httpx.ASGITransport(guarded)
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        await client.get(f"/v1/files{query}", headers=headers)
    assert owners == [owner_name(HASHES[owner])]
    assert owners[0] not in HASHES[owner]
    assert len(owners[0]) == 16


@pytest.mark.anyio
async def test_an_empty_key_is_none_even_if_its_hash_is_known() -> None:
    """The sha256 of nothing, set by mistake, does not open the service to everyone."""
    async with client_of(hashes=(hashlib.sha256(b"").hexdigest(),)) as client:
        given = {"authorization": "Bearer ", "api-key": ""}
        assert (await client.get("/v1/models?code=", headers=given)).status_code == 401


@pytest.mark.anyio
async def test_without_a_key_no_path_looks_unlike_another() -> None:
    """Routes, documents, metrics, wrong methods and paths that do not exist: all the same 401."""
    openai_401 = openai.format_error(Unauthorized(auth.REFUSAL))[1]
    async with client_of() as client:
        answers = set()
        for path in (
            *("/v1/models", "/v1/models/m", "/info", "/ready", "/metrics", "/docs", "/openapi.json"),
            *("/nothing", "/embed/x", "/health/x", "/Health", "/docs/oauth2-redirect"),
        ):
            for method in ("GET", "HEAD", "OPTIONS", "DELETE", "BREW"):
                response = await client.request(method, path)
                headers = {**response.headers, "x-request-id": ""}  # another one each time
                answers.add((response.status_code, str(headers)))
                assert response.content == (b"" if method == "HEAD" else openai_401)
    ((status, _),) = answers
    assert status == 401


@pytest.mark.anyio
async def test_health_alone_is_open() -> None:
    """Platforms probe without a key, and learn nothing."""
    async with client_of() as client:
        response = await client.get("/health")
        assert (response.status_code, response.content) == (200, b"")


@pytest.mark.anyio
async def test_with_a_key_everything_answers_as_it_does_without_keys() -> None:
    """Documents, metrics and 404 of unknown paths."""
    async with client_of() as guarded, client_of(hashes=()) as open_to_all:
        for path in ("/docs", "/openapi.json", "/v1/models", "/info", "/ready", "/metrics", "/nothing"):
            with_key = await guarded.get(path, headers={"api-key": KEY})
            assert with_key.status_code == (await open_to_all.get(path)).status_code


@pytest.mark.anyio
@pytest.mark.parametrize("path", PATHS)
async def test_each_dialect_says_401_in_its_own_shape(path: str) -> None:
    """A client's error parser reads it."""
    format_error = operations_at(path)[-1].format_error
    async with client_of() as client:
        response = await client.post(path, content=b"not even a body")
    assert (response.status_code, response.content) == format_error(Unauthorized(auth.REFUSAL))
    assert response.headers["content-type"] == "application/json"


@pytest.mark.anyio
async def test_refusals_are_counted() -> None:
    """Operators see that someone tries keys."""
    async with client_of() as client:
        await client.get("/v1/models")
        metrics = (await client.get("/metrics", headers={"api-key": KEY})).text
    assert 'te_request_failure{err="invalid_api_key"} 1.0' in metrics


@pytest.mark.anyio
async def test_no_log_holds_a_key(caplog: pytest.LogCaptureFixture) -> None:
    """Neither when it is accepted nor when it is refused nor when the backend breaks."""
    caplog.set_level(logging.DEBUG)
    backend = FakeInference()
    backend.error = RuntimeError("broken")
    async with client_of(backend) as client:
        for key in (KEY, "a-wrong-key-of-someone"):
            for headers, query in (
                ({"authorization": f"Bearer {key}"}, ""),
                ({"api-key": key}, ""),
                ({"x-functions-key": key}, ""),
                ({}, f"?code={key}"),
            ):
                await client.post(f"/v1/embeddings{query}", json=BODY, headers=headers)
    # httpx, here the caller, logs the URLs that it asks for.
    ours = [record.getMessage() for record in caplog.records if record.name.partition(".")[0] != "httpx"]
    assert any("RuntimeError" in line for line in ours)
    assert not any(key in line for line in ours for key in (KEY, "a-wrong-key-of-someone"))


@pytest.mark.anyio
async def test_a_callers_key_is_not_passed_on_to_a_backend() -> None:
    """Nothing of the four places arrives in what the backend gets."""
    received: list[str] = []
    answer = messages.pack_result(await FakeInference().run(EmbedRequest("m", ("a",))))

    async def serve(request: web.Request) -> web.Response:
        received.append(f"{request.raw_path} {request.raw_headers!r} {await request.read()!r}")
        return web.Response(body=answer)

    application = web.Application()
    application.router.add_post("/embed", serve)
    async with TestServer(application) as server:
        backend = HttpBackend(str(server.make_url("")))
        async with client_of(backend) as client:
            headers = {"authorization": f"Bearer {KEY}", "api-key": KEY, "x-functions-key": KEY}
            response = await client.post(f"/v1/embeddings?code={KEY}", json=BODY, headers=headers)
        await backend.close()
    assert response.status_code == 200
    (request,) = received
    assert KEY not in request


def test_a_made_key_fits_its_hash(capsys: pytest.CaptureFixture[str]) -> None:
    """Two calls give two keys; each line pair is a key and its sha256."""
    made = []
    for _ in range(2):
        assert keys.main([]) == 0
        key, digest, owner = (line.split()[1] for line in capsys.readouterr().out.splitlines())
        assert hashlib.sha256(key.encode()).hexdigest() == digest
        assert hashlib.sha256(bytes.fromhex(digest)).hexdigest()[:16] == owner
        Settings(api_key_hashes=(digest,))
        made.append(key)
    assert made[0] != made[1]
    assert min(map(len, made)) >= 40


def test_a_given_key_is_hashed_and_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line's end is no part of the key."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{KEY}\r\n"))
    assert keys.main(["--stdin"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"hash: {HASHES[0]}"
    assert not any(KEY in line for line in shown)


@pytest.mark.parametrize("key", ["", "\n", "short", "é" * 20, "one with a space in it", "x\0" * 20])
def test_a_key_that_cannot_be_is_refused(
    key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too short to be safe, or nothing that a header carries: exit code 2 and a line that says so."""
    monkeypatch.setattr("sys.stdin", io.StringIO(key))
    assert keys.main(["--stdin"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: a key needs 16")


CONFIDENTIAL = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@pytest.mark.anyio
@pytest.mark.parametrize("key", [KEY, "wrong"])
@pytest.mark.parametrize("name", ["code", "%63ode"])
@pytest.mark.parametrize(
    "path",
    [
        *("/docs", "/docs/swagger-ui.css", "/openapi.json", "/v1/models", "/info", "/ready", "/health"),
        *("/metrics", "/nothing", "/v1/embeddings"),
    ],
)
async def test_what_answers_a_key_in_the_address_is_kept_by_nobody(
    path: str, name: str, key: str
) -> None:
    """Neither in a cache nor in the Referer of what it leads to; refusals neither."""
    async with client_of() as client:
        response = await client.get(f"{path}?api-version=1&{name}={key}")
    assert {each: response.headers.get(each) for each in CONFIDENTIAL} == CONFIDENTIAL


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/docs", "/docs/swagger-ui.css", "/openapi.json"])
async def test_the_documentation_is_confidential_without_a_key_too(path: str) -> None:
    """Nobody frames the page; other answers say nothing about it."""
    async with client_of(hashes=()) as client:
        headers = (await client.get(path)).headers
        assert {each: headers.get(each) for each in CONFIDENTIAL} == CONFIDENTIAL
        assert "cache-control" not in (await client.get("/v1/models?codec=x")).headers


@pytest.mark.anyio
async def test_the_docs_page_runs_its_own_scripts_alone() -> None:
    """A nonce a page: what somebody gets into it otherwise is not run, nor is the page framed."""
    async with client_of(hashes=()) as client:
        first, second = [await client.get("/docs") for _ in range(2)]
    policies = [page.headers["content-security-policy"] for page in (first, second)]
    nonces = [policy.split("'nonce-")[1].split("'")[0] for policy in policies]
    assert nonces[0] != nonces[1]
    for page, policy, nonce in zip((first, second), policies, nonces, strict=True):
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-eval" not in policy
        assert page.text.count("<script") == 2
        assert page.text.count(f'<script nonce="{nonce}">') == 1
