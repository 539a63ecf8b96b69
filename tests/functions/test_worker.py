"""The three apps in Microsoft's own worker library: what it indexes; that it answers as uvicorn does."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from shared.contracts import EmbedRequest, EmbedResult
from shared.errors import UnknownModel
from shared.models.manifest import File
from shared.models.store import open_store_url
from shared.wire import codec, messages
from tests.functions.indexed import FUNCTIONS
from tests.functions.worker import Worker, WorkerFailed, running_worker
from tests.patience import PATIENCE_S
from tests.tiny_torch import as_fp16, manifest_of_folder, save_sentence_model

MODEL = "all-MiniLM-L6-v2"
KEY = "a-key-for-these-tests"
JSON = {"content-type": "application/json"}
MSGPACK = {"content-type": codec.CONTENT_TYPE}


@dataclass(frozen=True, slots=True)
class App:
    """One app, reached in two ways: through the worker library and over uvicorn."""

    worker: Worker
    http: httpx.Client

    def begin(self, method: str, path: str, **content: Any) -> Future[dict[str, Any]]:
        """Through the worker library, with what the host would make of the request.

        The host is GrpcMessageConversionExtensions.ToRpcHttp: one value a header, and a body only where
        its length was announced.
        """
        request = self.http.build_request(method, path, **content)
        body = request.read() if int(request.headers.get("content-length", 0)) else b""
        return self.worker.invoke(request.method, str(request.url), request.headers, body)

    def in_functions(self, method: str, path: str, **content: Any) -> httpx.Response:
        return _response(self.begin(method, path, **content))

    def over_both(self, method: str, path: str, **content: Any) -> tuple[httpx.Response, httpx.Response]:
        """The answers through the worker library and over uvicorn to the same request."""
        return self.in_functions(method, path, **content), self.http.request(method, path, **content)


def _response(answer: Future[dict[str, Any]]) -> httpx.Response:
    parts = answer.result(PATIENCE_S)
    return httpx.Response(parts["status"], headers=parts["headers"], content=parts["body"])


def _stable(response: httpx.Response) -> dict[str, str]:
    """The headers without those that a server adds or that tell times."""
    return {
        name: value
        for name, value in response.headers.items()
        if name not in ("date", "server", "server-timing", "x-request-id") and not name.endswith("-time")
    }


@contextmanager
def _running(settings: dict[str, str], headers: dict[str, str]) -> Iterator[App]:
    with (
        running_worker(settings) as worker,
        httpx.Client(base_url=worker.listen(), headers=headers, timeout=PATIENCE_S) as http,
    ):
        yield App(worker, http)


@pytest.fixture(scope="module")
def router(minilm_store: Path) -> Iterator[App]:
    """The router with the CPU backend in its process, behind a key."""
    settings = {
        "BLITZ_ROLE": "router",
        "BLITZ_MODEL_STORE": f"file://{minilm_store}",
        "BLITZ_API_KEY_HASHES": hashlib.sha256(KEY.encode()).hexdigest(),
    }
    with _running(settings, {"authorization": f"Bearer {KEY}"}) as app:
        yield app


@pytest.fixture(scope="module")
def cpu(minilm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    settings = {
        "BLITZ_ROLE": "cpu",
        "BLITZ_MODEL_STORE": f"file://{minilm_store}",
        "BLITZ_STORAGE": f"file://{tmp_path_factory.mktemp('bulk')}",
    }
    with _running(settings, {}) as app:
        yield app


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The GPU backend, on the CPU, with a tiny model of random weights."""
    folder = tmp_path_factory.mktemp("gpu")
    source = save_sentence_model(folder / "source", "bert", "mean")
    built = as_fp16(source, folder / "built")
    files = tuple(
        File(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in built.iterdir()
    )
    url = f"file://{folder / 'store'}"
    store = open_store_url(url, cache_dir=folder / "cache", cache_disk_bytes=1_000_000)
    store.publish(built, msgspec.structs.replace(manifest_of_folder(source), files=files))
    settings = {
        "BLITZ_ROLE": "gpu",
        "BLITZ_MODEL_STORE": url,
        "BLITZ_STORAGE": f"file://{folder / 'bulk'}",
        "BLITZ_ALLOW_CPU": "1",
    }
    with _running(settings, {}) as app:
        yield app


@pytest.fixture(scope="module")
def lone_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A router whose backends are elsewhere, over a store that does not answer."""
    store = tmp_path_factory.mktemp("broken")
    (store / MODEL / "current").mkdir(parents=True)  # a pointer is a file: reading it fails
    settings = {
        "BLITZ_MODEL_STORE": f"file://{store}",
        "BLITZ_CPU_BACKEND_URL": "http://127.0.0.1:9",
        "BLITZ_GPU_BACKEND_URL": "http://127.0.0.1:9",
    }
    with _running(settings, {}) as app:
        yield app


@pytest.mark.parametrize("role", ["router", "cpu", "gpu", "lone_router"])
def test_each_role_has_its_functions_and_no_others(
    role: str, request: pytest.FixtureRequest, record_property: Any
) -> None:
    """What the host sees. HTTP is open to all, since the apps check keys themselves."""
    app: App = request.getfixturevalue(role)
    record_property("import_s", app.worker.started())
    assert app.worker.functions() == FUNCTIONS[role]


@pytest.mark.parametrize(
    ("role", "heavy"),
    [
        ("router", {"torch", "transformers", "sentence_transformers", "onnx"}),
        ("cpu", {"torch", "transformers", "sentence_transformers", "onnx"}),
        ("lone_router", {"torch", "transformers", "onnxruntime", "tokenizers"}),
        ("gpu", {"onnxruntime", "sentence_transformers"}),
    ],
)
def test_a_role_imports_no_engine_but_its_own(
    role: str, heavy: set[str], request: pytest.FixtureRequest
) -> None:
    """An instance has 30 seconds to come up, and a zip app has no torch."""
    app: App = request.getfixturevalue(role)
    assert app.worker.modules() & heavy == set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"BLITZ_ROLE": "nonsense"}, "Misconfigured: BLITZ_ROLE must be one of: router, cpu, gpu"),
        ({"BLITZ_MODLE_STORE": "file://x"}, "BLITZ_MODLE_STORE .* did you mean BLITZ_MODEL_STORE"),
        ({"BLITZ_CACHE_MODELS": "many"}, "BLITZ_CACHE_MODELS is 'many': not a valid int"),
    ],
)
def test_a_wrong_setting_fails_the_indexing_and_is_named(settings: dict[str, str], message: str) -> None:
    """What the host logs when the app cannot start names the variable to change."""
    with pytest.raises(WorkerFailed, match=message), running_worker(settings):
        pass


_EMBED = {"model": MODEL, "input": ["hello", "Grüße an die Wölfe \N{WOLF FACE}"]}


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/embeddings", {"json": _EMBED}, 200),
        ("POST", "/v1/embeddings", {"json": {**_EMBED, "encoding_format": "base64"}}, 200),
        ("POST", "/v1/embeddings", {"json": _EMBED, "headers": {"accept": codec.CONTENT_TYPE}}, 200),
        ("POST", "/v1/embeddings", {"content": codec.pack(_EMBED), "headers": MSGPACK}, 200),
        ("POST", "/v1/embeddings?model=" + MODEL, {"json": {"input": "a"}}, 200),
        ("POST", f"/openai/deployments/{MODEL}/embeddings?api-version=1", {"json": {"input": "a"}}, 200),
        ("POST", "/embed", {"json": {"inputs": ["a", "b"], "normalize": False}}, 200),
        ("GET", "/v1/models", {}, 200),
        ("GET", f"/v1/models/{MODEL}", {}, 200),
        ("GET", "/v1/models/all%2DMiniLM-L6%2dv2?x=%26%3D", {}, 200),
        ("GET", "/v1/models/wei%C3%9F", {}, 404),
        ("GET", "/v1/models/..%2F..%2Fetc", {}, 404),
        ("GET", f"/info?model={MODEL}&empty=", {}, 200),
        ("GET", "/health", {}, 200),
        ("GET", "/", {"headers": {"accept": "text/html"}}, 200),
        ("GET", "/", {}, 405),
        ("GET", "/page/app.js", {}, 200),
        ("GET", "/openapi.json", {}, 200),
        ("POST", "/v1/embeddings", {"json": {**_EMBED, "model": "nobody"}}, 404),
        ("POST", "/embed?model=nobody", {"json": {"inputs": "a"}}, 404),
        ("POST", "/v1/embeddings", {"content": b'{"input": [', "headers": JSON}, 400),
        ("POST", "/v1/embeddings", {"content": b"", "headers": JSON}, 400),
        (
            "POST",
            "/v1/embeddings",
            {"content": b"\xff\x00", "headers": {"content-type": "a/b"}},
            415,
        ),
        ("PUT", "/v1/embeddings", {"json": _EMBED}, 405),
        ("GET", "/nowhere", {}, 404),
    ],
)
def test_the_router_answers_as_over_uvicorn(
    router: App, method: str, path: str, content: dict[str, Any], status: int
) -> None:
    """Same status, same bytes, same headers but for times."""
    inside, outside = router.over_both(method, path, **content)
    assert (inside.status_code, outside.status_code) == (status, status)
    assert without_id(inside.content) == without_id(outside.content)
    expected = _stable(outside)
    # The adapter names a content type where there is none.
    expected.setdefault("content-type", "text/plain; charset=utf-8")
    assert _stable(inside) == expected


def without_id(content: bytes) -> bytes:
    """Each answer has an id of its own."""
    return re.sub(rb"embd-[0-9a-f]{32}", b"embd-", content)


def test_vectors_come_out_right_and_not_only_alike(router: App) -> None:
    """base64 floats and JSON floats through the worker library are the same unit vector."""
    answers = [
        router.in_functions("POST", "/v1/embeddings", json=_EMBED | {"encoding_format": form}).json()
        for form in ("float", "base64")
    ]
    floats, packed = (answer["data"][0]["embedding"] for answer in answers)
    vector = np.frombuffer(base64.b64decode(packed), np.float32)
    assert vector.tolist() == pytest.approx(floats)
    assert len(vector) == 384
    assert float(np.linalg.norm(vector)) == pytest.approx(1, abs=1e-5)


def test_a_key_in_the_query_reaches_the_router(router: App) -> None:
    """The Functions convention ?code= works, as a header in any case does, and nothing else opens."""
    body = json.dumps({"model": MODEL, "input": "a"}).encode()

    def status(query: str, headers: dict[str, str]) -> int:
        url = f"http://localhost/v1/embeddings{query}"
        return int(router.worker.invoke("POST", url, JSON | headers, body).result(PATIENCE_S)["status"])

    assert status("", {}) == 401
    assert status("?code=wrong", {}) == 401
    assert status(f"?code={KEY}", {}) == 200
    assert status("", {"x-functions-key": KEY}) == 200


def test_a_body_of_unannounced_length_is_an_honest_error(router: App) -> None:
    """The host drops bodies that come in chunks without Content-Length: the client is told, not lost."""
    chunks = iter([json.dumps(_EMBED).encode()])
    response = router.in_functions("POST", "/v1/embeddings", content=chunks, headers=JSON)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_when_to_try_again_comes_through(lone_router: App) -> None:
    """Retry-After of a 503 reaches the client."""
    inside, outside = lone_router.over_both("GET", "/v1/models")
    assert (inside.status_code, outside.status_code) == (503, 503)
    assert inside.content == outside.content
    assert inside.headers["retry-after"] == outside.headers["retry-after"] == "1"
    assert inside.headers["retry-after-ms"] == "1000"


def test_invocations_are_served_side_by_side(router: App) -> None:
    """A short request is not held up by a long one that came before it, however long that takes."""
    for count in (16, 32, 64):
        texts = [f"{number} " + "many words of one long text " * 40 for number in range(count)]
        answered: list[str] = []
        long = router.begin("POST", "/v1/embeddings", json={"model": MODEL, "input": texts})
        long.add_done_callback(lambda _: answered.append("long"))  # noqa: B023
        short = router.begin("GET", "/health")
        short.add_done_callback(lambda _: answered.append("short"))  # noqa: B023
        assert _response(short).status_code == 200
        assert len(_response(long).json()["data"]) == count
        if answered[0] == "short":
            break
    assert answered == ["short", "long"]


def test_each_caller_gets_its_own_answer(router: App) -> None:
    """Twelve invocations at once, of different texts and dialects, are answered each with its own."""
    openai = [("/v1/embeddings", {"model": MODEL, "input": f"text {n}"}) for n in range(6)]
    tei = [("/embed", {"inputs": [f"text {n}"] * (n + 1)}) for n in range(6)]
    asked = [ask for pair in zip(openai, tei, strict=True) for ask in pair]
    begun = [router.begin("POST", path, json=body) for path, body in asked]
    for (path, body), answer in zip(asked, begun, strict=True):
        there = router.http.post(path, json=body).content
        assert without_id(_response(answer).content) == without_id(there)


@pytest.mark.parametrize(("role", "model", "dimensions"), [("cpu", MODEL, 384), ("gpu", "tiny", 32)])
def test_a_backend_embeds_in_the_wire_format(
    role: str, model: str, dimensions: int, request: pytest.FixtureRequest
) -> None:
    """Everything but the timings is equal, bit for bit."""
    app: App = request.getfixturevalue(role)
    asked = messages.pack_request(EmbedRequest(model, ("hello", "a longer text than the first")))
    results = []
    for response in app.over_both("POST", "/embed", content=asked, headers=MSGPACK):
        assert response.status_code == 200
        assert response.headers["content-type"] == codec.CONTENT_TYPE
        results.append(messages.unpack_result(response.content, EmbedResult))
    inside, outside = results
    assert inside.vectors.shape == (2, dimensions)
    assert inside.vectors.tobytes() == outside.vectors.tobytes()
    rest: dict[str, Any] = {"vectors": None, "timings": None}
    assert replace(inside, **rest) == replace(outside, **rest)


@pytest.mark.parametrize("role", ["cpu", "gpu"])
def test_a_backend_packs_its_errors(role: str, request: pytest.FixtureRequest) -> None:
    """An error's bytes are the same, and they are the wire format's."""
    app: App = request.getfixturevalue(role)
    asked = messages.pack_request(EmbedRequest("nobody", ("hello",)))
    inside, outside = app.over_both("POST", "/embed", content=asked, headers=MSGPACK)
    assert (inside.status_code, outside.status_code) == (404, 404)
    assert inside.content == outside.content
    assert _stable(inside) == _stable(outside)
    assert isinstance(messages.unpack_error(inside.content), UnknownModel)
