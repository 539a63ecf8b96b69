"""Paths and methods that are nearly right: answered, or told what is; and what every GET has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import cast

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from functions.api.app import create_app
from functions.api.batches import Batches
from shared.dialects.operations import PATHS
from shared.models.catalogue import Catalogue
from shared.observability.metrics import Telemetry
from shared.settings import Settings
from shared.storage.folder import FolderBlobs, open_folder
from tests.apps import router_app
from tests.fakes.backend import FakeBackend

pytestmark = pytest.mark.anyio

OPENAI = {"model": "mini", "input": "a"}
TEI = {"model": "mini", "inputs": "a"}
RANKED = {"model": "rerank-1", "query": "q", "documents": ["a"]}
RECORDS = {"model": "mini", "values": [{"recordId": "0", "data": {"text": "a"}}]}


def client_of(app: Starlette | None = None) -> httpx.AsyncClient:
    app = app or router_app(FakeBackend("mini", "rerank-1"))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def ask(method: str, path: str, body: object = None) -> httpx.Response:
    """The path goes as it is: a client library would tidy it."""
    async with client_of() as client:
        url = httpx.URL("http://test").copy_with(raw_path=path.encode())
        request = client.build_request(method, url, json=body)
        return await client.send(request, follow_redirects=False)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings/", OPENAI),
        ("//v1/embeddings", OPENAI),
        ("/v1//embeddings", OPENAI),
        ("/v1/embeddings//", OPENAI),
        ("///v1///embeddings///", OPENAI),
        ("/v1/v1/embeddings", OPENAI),
        ("/v1/v1/embeddings/", OPENAI),
        ("//v1//v1/embeddings", OPENAI),
        ("/v1/embeddings/v1/embeddings", OPENAI),
        ("/embeddings/", OPENAI),
        ("/openai/v1/openai/v1/embeddings", OPENAI),
        ("/openai/openai/v1/embeddings", OPENAI),
        ("/openai/openai/deployments/mini/embeddings?api-version=1", OPENAI),
        ("/openai/deployments/mini/embeddings/", OPENAI),
        ("//openai/deployments/mini/embeddings", OPENAI),
        ("//", TEI),
        ("/embed/", TEI),
        ("//embed", TEI),
        ("/rerank/", RANKED),
        ("/v1/v1/rerank", RANKED),
        ("/v2/v2/rerank", RANKED),
        ("/v1/rerank/", RANKED),
        ("/azure-search/", RECORDS),
        ("/%2Fembed", TEI),
    ],
)
async def test_a_path_that_is_plainly_meant_is_answered(path: str, body: object) -> None:
    """Without a redirect, which many clients follow with a GET."""
    response = await ask("POST", path, body)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/",
        "//v1/models",
        "/v1/v1/models",
        "/v1/v1/models/mini",
        "/v1/models/mini/",
        "/info/?model=mini",
        "//health",
        "/health/",
        "/ready/",
    ],
)
async def test_so_is_one_that_is_read(path: str) -> None:
    assert (await ask("GET", path)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "right"),
    [
        ("POST", "/v1/embedding", "/v1/embeddings"),
        ("POST", "/v1/Embeddings", "/v1/embeddings"),
        ("POST", "/V1/embeddings/", "/v1/embeddings"),
        ("POST", "/api/v1/embeddings", "/v1/embeddings"),
        ("POST", "/v3/embeddings", "/v1/embeddings"),
        ("POST", "/v1/embeddings/embeddings", "/embeddings"),
        ("POST", "/v1/v2/rerank", "/v2/rerank"),
        ("POST", "/v1/openai/deployments/mini/embeddings", "/openai/deployments/{model}/embeddings"),
        ("POST", "/openai/deployments/mini/Embeddings", "/openai/deployments/{model}/embeddings"),
        ("POST", "/openai/deployment/mini/embeddings", "/openai/deployments/{model}/embeddings"),
        ("POST", "/reranking", "/rerank"),
        ("POST", "/azure_search", "/azure-search"),
        ("GET", "/Health", "/health"),
        ("GET", "/healthz", "/health"),
        ("GET", "/models", "/v1/models"),
        ("GET", "/v1/model", "/v1/models"),
        ("GET", "/openai/v1/models", "/v1/models"),
        ("GET", "/nothing", ""),
        ("GET", "/v1/chat/completions", ""),
        ("GET", "/" + "embed/" * 5_000, ""),
        ("GET", "/a" * 5_000, ""),
        ("GET", "/\x00\x1b[31m", ""),
    ],
)
async def test_another_one_is_told_the_nearest_there_is(method: str, path: str, right: str) -> None:
    """404 in OpenAI's shape, with what was asked for, on one line."""
    response = await ask(method, path.replace("\x00", "%00").replace("\x1b", "%1B"), OPENAI)
    assert response.status_code == 404
    message = response.json()["error"]["message"]
    told = re.search(r"did you mean (\S+)\?", message)
    assert (told[1] if told else "") == right
    assert message.isprintable()
    assert len(message) < 250
    assert message.startswith(f"no route at {path[:20].replace(chr(0), '?').replace(chr(27), '?')}")


def all_routes(folder: Path) -> Starlette:
    """With files and batches."""
    backend = FakeBackend("mini")
    settings = Settings()
    batches = Batches(open_folder(folder), settings)
    return create_app(
        settings, backend, cast(Catalogue, backend), Telemetry(CollectorRegistry()), batches
    )


def there(app: Starlette) -> dict[str, set[str]]:
    """Each path with something in its parameters -> its methods."""
    methods: dict[str, set[str]] = {}
    for route in app.routes:
        if isinstance(route, Route) and route.path != "/openapi.json":
            path = re.sub(r"\{[^}]*\}", "mini", route.path)
            methods.setdefault(path, set()).update(route.methods or ())
    return methods


async def test_a_wrong_method_is_told_all_right_ones(tmp_path: Path) -> None:
    """405 with Allow, for every path; OPTIONS too, where no browser is let in."""
    app = all_routes(tmp_path)
    assert there(app)["/v1/files"] == {"GET", "HEAD", "POST"}
    async with client_of(app) as client:
        for path, methods in there(app).items():
            for method in {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"} - methods:
                response = await client.request(method, path)
                assert response.status_code == 405, (method, path)
                assert set(response.headers["allow"].split(", ")) == methods
                if method != "HEAD":
                    assert ", ".join(sorted(methods)) in response.json()["error"]["message"]


async def test_whatever_answers_get_answers_head(tmp_path: Path) -> None:
    """With the same status and headers, but those of the moment; content has none."""
    app = all_routes(tmp_path)
    volatile = {"x-request-id", "content-security-policy", "content-length"}
    paths = {path for path, methods in there(app).items() if "GET" in methods}
    assert {"/health", "/v1/models", "/v1/models/mini", "/docs", "/metrics", "/v1/batches"} <= paths
    async with client_of(app) as client:
        for path in (*paths, "/openapi.json"):
            get, head = await client.get(path), await client.head(path)
            assert head.status_code == get.status_code, path
            shown = [
                {k: v for k, v in each.headers.items() if k not in volatile} for each in (get, head)
            ]
            assert shown[0] == shown[1]


async def test_the_head_of_a_file_reads_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size is in the headers."""
    app = all_routes(tmp_path)
    line = json.dumps({"custom_id": "a"}).encode() * 1000
    async with client_of(app) as client:
        made = await client.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", line)}
        )
        path = f"/v1/files/{made.json()['id']}/content"
        monkeypatch.delattr(FolderBlobs, "read_range")
        head = await client.head(path)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(line)))


PREFIX = "/models/of/mine"


@pytest.mark.parametrize("how", ["mounted", "root_path", "stripped by a proxy"])
async def test_everything_works_behind_a_prefix(how: str) -> None:
    """Its documents say where paths are by themselves: relative to where they lie."""
    app = router_app(FakeBackend("mini", "rerank-1"))
    outer: Starlette = app
    if how == "mounted":
        outer = Starlette(routes=[Mount(PREFIX, app)])
    root = PREFIX if how == "root_path" else ""
    begin = "" if how == "stripped by a proxy" else PREFIX
    transport = httpx.ASGITransport(outer, root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        document = httpx.URL(f"http://test{PREFIX}/openapi.json")
        described = (await client.get(f"{begin}/openapi.json")).json()
        (server,) = described["servers"]
        base = document.join(server["url"])
        assert str(base) == f"http://test{PREFIX}/"
        assert set(PATHS) < set(described["paths"])
        page = (await client.get(f"{begin}/docs")).text
        for name in re.findall(r"(?:src|href)=\"([^\"]*)\"|url: '([^']*)'", page):
            found = httpx.URL(f"http://test{PREFIX}/docs").join("".join(name))
            path = found.path.removeprefix(PREFIX)
            assert (await client.get(begin + path)).status_code == 200
        assert (await client.post(f"{begin}/v1/embeddings/", json=OPENAI)).status_code == 200
        assert (await client.post(f"{begin}/embed", json={})).json()["error_type"] == "Validation"
        assert (await client.get(f"{begin}/health")).status_code == 200
