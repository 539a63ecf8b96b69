"""Cohere's SDK, both its versions, against the real service: what it sends, what it makes of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cohere
import numpy as np
import pytest
from cohere.core import RequestOptions
from cohere.errors import BadRequestError, NotFoundError, TooManyRequestsError

from shared.errors import Overloaded
from tests.fakes.backend import FakeBackend
from tests.server import http_post

MODEL = "all-MiniLM-L6-v2"
QUERY = "what is the capital of France"
DOCUMENTS = ["bananas are yellow", "Paris is the capital of France", "Berlin is a city in Germany"]
ONCE: RequestOptions = {"max_retries": 0}


@pytest.fixture(scope="module")
def v1(service_url: str) -> Iterator[cohere.Client]:
    with cohere.Client(api_key="any", base_url=service_url) as client:
        yield client


@pytest.fixture(scope="module")
def cosines(service_url: str) -> list[float]:
    """Each document's with the query, from vectors that the service gives."""
    body = {"inputs": [QUERY, *DOCUMENTS]}
    vectors = np.array(http_post(f"{service_url}/embed", json=body).json())
    return [float(vectors[0] @ row) for row in vectors[1:]]


def test_v2_ranks_the_documents(cohere_v2: cohere.ClientV2, cosines: list[float]) -> None:
    """Best first, the scores being the cosines of the vectors, which a warning says."""
    answer = cohere_v2.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
    assert [each.index for each in answer.results] == [1, 2, 0]
    for each in answer.results:
        assert each.relevance_score == pytest.approx(cosines[each.index], abs=1e-5)
    assert answer.id
    assert answer.meta is not None
    assert answer.meta.warnings is not None
    assert "cosine" in answer.meta.warnings[0]
    assert answer.meta.tokens is not None
    assert answer.meta.tokens.input_tokens


@pytest.mark.parametrize(("top_n", "kept"), [(1, [1]), (2, [1, 2]), (9, [1, 2, 0])])
def test_top_n_keeps_the_best(cohere_v2: cohere.ClientV2, top_n: int, kept: list[int]) -> None:
    """Fewer results, the same order; more than there are is all."""
    answer = cohere_v2.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, top_n=top_n)
    assert [each.index for each in answer.results] == kept


def test_v1_ranks_objects_and_returns_them(v1: cohere.Client, cosines: list[float]) -> None:
    """Documents may be objects with a text; the model may be left out where there is only one."""
    documents = [{"text": text, "title": "t"} for text in DOCUMENTS]
    answer = v1.rerank(query=QUERY, documents=documents, return_documents=True, top_n=2)
    assert [each.index for each in answer.results] == [1, 2]
    for each in answer.results:
        assert each.document is not None
        assert each.document.text == DOCUMENTS[each.index]
        assert each.relevance_score == pytest.approx(cosines[each.index], abs=1e-5)


def test_v1_returns_no_documents_by_itself(v1: cohere.Client) -> None:
    """Only if asked for."""
    answer = v1.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
    assert [each.document for each in answer.results] == [None] * 3


def test_an_empty_document_fails_no_other(cohere_v2: cohere.ClientV2, v1: cohere.Client) -> None:
    """It comes last in both versions, and a warning says which one it was."""
    for client in (cohere_v2, v1):
        answer = client.rerank(model=MODEL, query=QUERY, documents=["", *DOCUMENTS])
        assert [each.index for each in answer.results] == [2, 3, 1, 0]
        assert answer.results[-1].relevance_score == -1
        assert answer.meta is not None
        assert answer.meta.warnings is not None
        assert answer.meta.warnings[0] == "1 document is empty and comes last: 0"


def test_an_unknown_model_is_not_found(cohere_v2: cohere.ClientV2) -> None:
    """The SDK's exception holds the message, which tells what there is."""
    with pytest.raises(NotFoundError) as caught:
        cohere_v2.rerank(model="nope", query=QUERY, documents=DOCUMENTS)
    assert MODEL in caught.value.body["message"]


@pytest.mark.parametrize(
    ("query", "documents", "top_n", "field"),
    [
        ("", ["a"], 1, "query"),
        ("q", [], 1, "documents"),
        ("q", ["", " "], 1, "documents"),
        ("q", ["a"], 0, "top_n"),
    ],
)
def test_a_bad_request_names_the_field(
    cohere_v2: cohere.ClientV2, query: str, documents: list[str], top_n: int, field: str
) -> None:
    """400 with a message, whatever the SDK let through."""
    with pytest.raises(BadRequestError) as caught:
        cohere_v2.rerank(model=MODEL, query=query, documents=documents, top_n=top_n)
    assert field in caught.value.body["message"]


def test_overload_is_too_many_requests(serve: Callable[[FakeBackend], str]) -> None:
    """The SDK sees when to come back."""
    url = serve(FakeBackend(error=Overloaded("the queue is full", retry_after_s=0.5)))
    with (
        cohere.ClientV2(api_key="any", base_url=url) as client,
        pytest.raises(TooManyRequestsError) as caught,
    ):
        client.rerank(model="mini", query="q", documents=["a"], request_options=ONCE)
    assert caught.value.body["message"] == "the queue is full"
    assert (caught.value.headers or {})["retry-after-ms"] == "500"
