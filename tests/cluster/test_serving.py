"""The service on a real Ray cluster answers what the one-machine service answers."""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import httpx
import numpy as np
import pytest
from openai import NotFoundError, OpenAI
from prometheus_client.parser import text_string_to_metric_families

from functions.cluster.placement import View, rank
from functions.cluster.request_router import UNCONFIRMED_S
from shared.settings import Settings
from tests.apps import client_over_models
from tests.cluster.models import MODELS, SCORER
from tests.cluster.running import deploy, replicas_of, scrape
from tests.ingestion import Ingestion
from tests.patience import PATIENCE_S, wait_until
from tests.server import http_get, http_post

LOADS = "blitz_cache_load_duration_count"

BODIES: dict[str, tuple[str, Any]] = {
    "openai": ("/v1/embeddings", {"model": "m0", "input": ["w1 w2", "w3"]}),
    "openai base64": ("/v1/embeddings", {"model": "m1", "input": "w1", "encoding_format": "base64"}),
    "azure": ("/openai/deployments/m2/embeddings?api-version=2024-10-21", {"input": "w5"}),
    "tei embed": ("/embed", {"model": "m3", "inputs": ["w1", "w2 w9"]}),
    "tei rerank": ("/rerank", {"model": "scorer", "query": "w1", "texts": ["w2", "w1 w3"]}),
    "tei tokenize": ("/tokenize", {"model": "m0", "inputs": "w1 w2"}),
    "tei decode": ("/decode", {"model": "m0", "ids": [5, 6]}),
    "tei similarity": (
        "/similarity",
        {"model": "m4", "inputs": {"source_sentence": "w1", "sentences": ["w1", "w2"]}},
    ),
    "cohere embed": ("/v2/embed", {"model": "m5", "texts": ["w1"], "embedding_types": ["float"]}),
    "cohere rerank": ("/v2/rerank", {"model": "scorer", "query": "w1", "documents": ["w2", "w3"]}),
    "ollama": ("/api/embed", {"model": "m6", "input": ["w1"]}),
    "azure search": ("/azure-search", {"values": [{"recordId": "0", "data": {"text": "w1"}}]}),
    "in parts": ("/embed", {"model": "m6", "inputs": [f"w{n % 400}" for n in range(1200)]}),
    "dimensions": ("/v1/embeddings", {"model": "m7", "input": "w1", "dimensions": 4}),
    "unknown model": ("/v1/embeddings", {"model": "nope", "input": "w1"}),
    "empty input": ("/v1/embeddings", {"model": "m0", "input": ["w1", ""]}),
    "not json": ("/v1/embeddings", b"{"),
    "wrong task": ("/v1/embeddings", {"model": "scorer", "input": "w1"}),
    "no path": ("/nowhere", {}),
}
"""By name: a path, and a body that is answered there or refused."""

PASSING = {
    "date",
    "server",
    "server-timing",
    "x-request-id",
    "x-compute-time",
    "x-total-time",
    "x-tokenization-time",
} | {
    "x-queue-time",
    "x-inference-time",
}
"""Headers that no two answers have alike."""


def _comparable(response: httpx.Response) -> tuple[int, dict[str, str], Any]:
    headers = {name: value for name, value in response.headers.items() if name not in PASSING}
    body: Any = response.content
    if response.headers.get("content-type") == "application/json":
        body = response.json()
        if isinstance(body, dict):
            for name in ("id", "total_duration", "load_duration"):
                body.pop(name, None)
        headers.pop("content-length", None)
    return response.status_code, headers, body


def test_models_stay_with_the_replicas_that_hold_them(service: str) -> None:
    """Four that all belong to a replica of three places: it says that it is full, and so one goes to the
    other replica and stays there. The first test here, because then both are empty."""
    keys = [name.rpartition("#")[2] for name in replicas_of("cpu")]
    homes: dict[str, list[str]] = {}
    for model in MODELS:
        ((home,), _) = rank(model.name, [View(key, "no", 1, 0) for key in keys])
        homes.setdefault(home, []).append(model.name)
    chosen = max(homes.values(), key=len)[:4]

    def asked_without_a_load() -> bool:
        time.sleep(UNCONFIRMED_S)  # until the router knows no more than what replicas told
        before = scrape(service, LOADS)
        for name in chosen:
            assert http_post(f"{service}/embed", json={"model": name, "inputs": "w1"}).is_success
        return bool(before) and scrape(service, LOADS) == before

    wait_until(asked_without_a_load)
    loads = scrape(service, LOADS)
    assert all(loads["cpu", replica] for deployment, replica in loads if deployment == "cpu")


def test_a_trace_goes_on_in_the_replica(service: str, telemetry: Ingestion) -> None:
    """The caller's, by way of the router and its call: three spans, each with its parent."""
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace_id}-{parent}-01", "x-request-id": "traced"}
    body = {"model": "m0", "inputs": "w1"}
    assert http_post(f"{service}/embed", json=body, headers=headers).is_success

    def spans() -> dict[str, dict[str, Any]]:
        """By role and type, as they were sent."""
        return {
            f"{each['tags']['ai.cloud.role']} {each['data']['baseType']}": each
            for each in telemetry.envelopes
            if each["tags"].get("ai.operation.id") == trace_id
        }

    wait_until(lambda: len(spans()) == 3)
    served, called, ran = (
        spans()[f"blitz-{name}"]
        for name in ("router RequestData", "router RemoteDependencyData", "cpu RequestData")
    )
    assert served["tags"]["ai.operation.parentId"] == parent
    assert called["tags"]["ai.operation.parentId"] == served["data"]["baseData"]["id"]
    assert ran["tags"]["ai.operation.parentId"] == called["data"]["baseData"]["id"]
    assert ran["data"]["baseData"]["name"] == "RUN /embed"
    assert ran["data"]["baseData"]["properties"] == {"model": "m0", "request_id": "traced"}


@pytest.mark.anyio
@pytest.mark.parametrize("name", BODIES)
async def test_ray_answers_as_one_machine_does(service: str, store_folder: Path, name: str) -> None:
    """To the byte, in every dialect: status, headers and body, results and errors."""
    path, body = BODIES[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    settings = Settings(model_store=f"file://{store_folder}")
    asked: dict[str, Any] = {"content": content, "headers": {"content-type": "application/json"}}
    async with client_over_models(settings) as client:
        expected = await client.post(path, **asked)
    answered = http_post(f"{service}{path}", **asked)
    assert _comparable(answered) == _comparable(expected)


def test_the_official_client_embeds(service: str) -> None:
    """And finds its errors."""
    with OpenAI(base_url=f"{service}/v1", api_key="any", max_retries=0) as client:
        answer = client.embeddings.create(model="m0", input=["w1 w2", "w7"])
        vectors = np.array([each.embedding for each in answer.data])
        assert np.allclose(vectors, MODELS[0].vectors(["w1 w2", "w7"]), atol=1e-6)
        with pytest.raises(NotFoundError, match="m0, m1"):
            client.embeddings.create(model="nope", input="a")
        assert "m7" in [model.id for model in client.models.list()]


def test_a_request_has_one_id(service: str) -> None:
    """The caller's, or a new one, in one header."""
    sent = {"x-request-id": "mine-1"}
    for headers in (sent, {}):
        response = http_post(f"{service}/embed", json={"model": "m0", "inputs": "w1"}, headers=headers)
        ids = response.headers.get_list("x-request-id")
        assert len(ids) == 1
        assert headers.get("x-request-id", ids[0]) == ids[0]


def test_one_scrape_has_every_replica(service: str) -> None:
    """The router's and both backends' samples, each with its replica."""
    families = list(text_string_to_metric_families(http_get(f"{service}/metrics").text))
    assert len({family.name for family in families}) == len(families)
    replicas = scrape(service, "blitz_ready")
    assert sorted(deployment for deployment, _ in replicas) == ["cpu", "cpu", "router"]


def test_the_deadline_is_the_callers(service: str) -> None:
    """504 when it is over, in the dialect's shape."""
    headers = {"x-blitz-timeout-ms": "1"}
    body = {"model": "m0", "inputs": ["w1 w2 w3"] * 500}
    response = http_post(f"{service}/embed", json=body, headers=headers)
    assert response.status_code == 504
    assert set(response.json()) == {"error", "error_type"}


def test_no_wrong_vector_among_many_models(service: str) -> None:
    """5,000 requests over 8 models and a cross-encoder, with room for 3 models a replica."""
    random = Random(5)
    asked = []
    for _ in range(5000):
        model = MODELS[min(random.randrange(8), random.randrange(8))]  # some are asked for more
        texts = [
            f"w{random.randrange(400)} w{random.randrange(400)}" for _ in range(random.randint(1, 3))
        ]
        asked.append((SCORER if random.random() < 0.05 else model, texts))

    def ask(client: httpx.Client, index: int) -> None:
        model, texts = asked[index]
        if model is SCORER:
            body: dict[str, Any] = {"model": model.name, "query": "w1", "texts": texts}
            response = client.post("/rerank", json=body)
            assert response.status_code == 200, response.text
            scores = {each["index"]: each["score"] for each in response.json()}
            expected = model.scores("w1", texts)
            assert np.allclose([scores[n] for n in range(len(texts))], expected, atol=1e-5)
            return
        response = client.post("/embed", json={"model": model.name, "inputs": texts})
        assert response.status_code == 200, response.text
        assert np.allclose(np.array(response.json()), model.vectors(texts), atol=1e-5)

    with (
        httpx.Client(base_url=service, timeout=PATIENCE_S) as client,
        ThreadPoolExecutor(16) as threads,
    ):
        for _ in threads.map(lambda index: ask(client, index), range(len(asked))):
            pass


def test_a_batch_is_done(service: str, store_folder: Path, tmp_path: Path) -> None:
    """By the official client and the CPU replicas: a file in, its vectors out. Deploys anew."""
    model = MODELS[3]
    lines = [
        {
            "custom_id": f"c{n}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": model.name, "input": f"w{n}"},
        }
        for n in range(20)
    ]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    deploy(store_folder, storage=f"file://{tmp_path}")
    with OpenAI(base_url=f"{service}/v1", api_key="any", max_retries=0) as client:
        file = client.files.create(file=("in.jsonl", data), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
        )
        until = time.monotonic() + PATIENCE_S
        while batch.status not in ("completed", "failed") and time.monotonic() < until:
            time.sleep(0.5)
            batch = client.batches.retrieve(batch.id)
        assert batch.status == "completed"
        assert batch.output_file_id is not None
        output = client.files.content(batch.output_file_id).text
    answers = {each["custom_id"]: each for each in map(json.loads, output.splitlines())}
    got = [answers[f"c{n}"]["response"]["body"]["data"][0]["embedding"] for n in range(20)]
    assert np.allclose(got, model.vectors([f"w{n}" for n in range(20)]), atol=1e-6)


def test_keys_are_asked_for_as_everywhere(service: str, store_folder: Path) -> None:
    """On every path but the liveness probe; the last test here, because it deploys anew."""
    deploy(store_folder, api_key_hashes=(hashlib.sha256(b"a key").hexdigest(),))
    body = {"model": "m0", "inputs": "w1"}
    assert http_post(f"{service}/embed", json=body).status_code == 401
    assert http_get(f"{service}/metrics").status_code == 401
    assert http_get(f"{service}/health").status_code == 200
    key = {"authorization": "Bearer a key"}
    assert http_post(f"{service}/embed", json=body, headers=key).status_code == 200
    assert "te_request_count" in http_get(f"{service}/metrics", headers=key).text
