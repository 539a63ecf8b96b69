"""Limits tried over real services: what is at one passes, of one more no work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.server import metrics_of, running_service
from tests.tiny import Tiny, publish_all

REQUEST_TOKENS, INPUTS, TEXT_TOKENS = 900, 9, 332
LIMITS = {
    "BLITZ_MAX_REQUEST_TOKENS": str(REQUEST_TOKENS),
    "BLITZ_MAX_INPUTS": str(INPUTS),
    # What a tiny model is assumed to take: 332 tokens take 50.0 MB, 333 take 50.2.
    "BLITZ_BATCH_MEMORY_BYTES": "50000000",
    # Far less than one request may have: what waits is refused, and not what comes.
    "BLITZ_QUEUE_TOKENS": "20",
    "BLITZ_PART_TEXTS": "2",
    "BLITZ_DEFAULT_MODEL": "embedder",
}
SPECIAL, PAIR_SPECIAL = 2, 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"file://{tmp_path_factory.mktemp('limits') / 'models'}"
    publish_all([Tiny("embedder"), Tiny("scorer", task="cross-encoder")], url)
    return url


@pytest.fixture(scope="module", params=["one process", "router and backend"])
def service(request: pytest.FixtureRequest, store: str) -> Iterator[tuple[str, str]]:
    """The URLs of what is asked, and of what runs the models."""
    if request.param == "one process":
        with running_service(store, environ=LIMITS) as url:
            yield url, url
        return
    with running_service(store, environ={**LIMITS, "BLITZ_ROLE": "cpu"}) as backend:
        environ = {**LIMITS, "BLITZ_CPU_BACKEND_URL": backend}
        with running_service(store, environ=environ) as url:
            yield url, backend


def words(tokens: int, special: int = SPECIAL) -> str:
    """A text of so many tokens, special ones counted."""
    return " ".join(["w1"] * (tokens - special))


def texts(tokens: int) -> list[str]:
    """Three texts of `tokens` in all."""
    return [words(300), words(300), words(tokens - 600)]


def documents(tokens: int) -> list[str]:
    """Three that with QUERY have `tokens` in all."""
    beside = PAIR_SPECIAL + 100
    return [words(300, beside), words(300, beside), words(tokens - 600, beside)]


QUERY = words(100, 0)
SCORER = {"model": "scorer"}
BODIES: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "openai": ("/v1/embeddings", lambda tokens: {"input": texts(tokens)}),
    "tei": ("/embed", lambda tokens: {"inputs": texts(tokens)}),
    "similarity": (
        "/similarity",
        lambda tokens: {
            "inputs": {"source_sentence": texts(tokens)[0], "sentences": texts(tokens)[1:]},
        },
    ),
    "tokens": ("/tokenize", lambda tokens: {"inputs": texts(tokens)}),
    "rerank": ("/rerank", lambda tokens: {**SCORER, "query": QUERY, "texts": documents(tokens)}),
    "predict": ("/predict", lambda tokens: {**SCORER, "inputs": [[text] for text in texts(tokens)]}),
    "cohere v1": (
        "/v1/rerank",
        lambda tokens: {**SCORER, "query": QUERY, "documents": documents(tokens)},
    ),
    "cohere v2": (
        "/v2/rerank",
        lambda tokens: {**SCORER, "query": QUERY, "documents": documents(tokens)},
    ),
    "cosine": (
        "/v2/rerank",
        lambda tokens: {"model": "embedder", "query": texts(tokens)[0], "documents": texts(tokens)[1:]},
    ),
    "cohere embed": ("/v2/embed", lambda tokens: {"model": "embedder", "texts": texts(tokens)}),
    "search": (
        "/azure-search",
        lambda tokens: {
            "values": [
                {"recordId": str(n), "data": {"text": text}} for n, text in enumerate(texts(tokens))
            ]
        },
    ),
}


def batches_of(url: str) -> float:
    """How many micro-batches were run."""
    return metrics_of(url).get("te_batch_next_size_count", 0.0)


@pytest.mark.parametrize("name", BODIES)
def test_a_request_s_tokens_are_counted_before_any_are_run(service: tuple[str, str], name: str) -> None:
    """In every dialect: as many as it may have pass, of one more the refusal says both numbers."""
    url, backend = service
    path, body = BODIES[name]
    at_limit = httpx.post(url + path, json=body(REQUEST_TOKENS), timeout=60)
    assert at_limit.status_code == 200, at_limit.text
    before = batches_of(backend)
    over = httpx.post(url + path, json=body(REQUEST_TOKENS + 1), timeout=60)
    assert over.status_code == 413
    assert str(REQUEST_TOKENS + 1) in over.text
    assert str(REQUEST_TOKENS) in over.text
    assert batches_of(backend) == before


def test_what_info_tells_holds_when_tried(service: tuple[str, str]) -> None:
    """Each limit passes with a text cut nowhere; one more is the client's error."""
    url, _ = service
    info = httpx.get(f"{url}/info", params={"model": "embedder"}).json()
    assert info["max_input_length"] == TEXT_TOKENS
    assert info["max_batch_tokens"] == REQUEST_TOKENS
    assert info["max_client_batch_size"] == INPUTS
    assert info["max_concurrent_requests"] == 512
    for inputs, more, status in (
        ([words(TEXT_TOKENS)], [words(TEXT_TOKENS + 1)], 422),
        (texts(REQUEST_TOKENS), texts(REQUEST_TOKENS + 1), 413),
        (["w1"] * INPUTS, ["w1"] * (INPUTS + 1), 422),
    ):
        for sent, expected in ((inputs, 200), (more, status)):
            answer = httpx.post(f"{url}/embed", json={"inputs": sent, "truncate": False}, timeout=60)
            assert answer.status_code == expected, answer.text


def test_what_there_is_no_memory_for_is_refused_and_not_cut_elsewhere(service: tuple[str, str]) -> None:
    """The model reads 512, there is memory for 332; where it was asked to cut, it would be at 512."""
    url, _ = service
    answer = httpx.post(f"{url}/embed", json={"inputs": ["w1", words(600)], "truncate": True})
    assert answer.status_code == 422
    message = answer.json()["error"]
    assert "inputs[1]" in message
    assert "332 of the 512" in message
