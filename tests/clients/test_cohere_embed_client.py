"""Cohere's SDK embeds: what it sends to /v2/embed, what it makes of the answers."""

from __future__ import annotations

import base64
from collections.abc import Callable

import cohere
import numpy as np
import pytest
from cohere.core import RequestOptions
from cohere.errors import BadRequestError, NotFoundError, TooManyRequestsError
from numpy.typing import NDArray

from shared.contracts import EmbedRequest
from shared.errors import Overloaded
from tests.fakes.backend import FakeBackend
from tests.server import http_get, http_post

MODEL = "all-MiniLM-L6-v2"
TEXTS = ["bananas are yellow", "Paris is the capital of France", "Berlin is a city in Germany"]
ONCE: RequestOptions = {"max_retries": 0}


@pytest.fixture(scope="module")
def vectors(service_url: str) -> NDArray[np.float32]:
    """What the service says elsewhere: (3, 384)."""
    answer = http_post(f"{service_url}/embed", json={"inputs": TEXTS}).json()
    return np.array(answer, np.float32)


def test_floats_are_the_models_vectors(cohere_v2: cohere.ClientV2, vectors: NDArray[np.float32]) -> None:
    """In the order of the texts, which come back too, with their tokens."""
    answer = cohere_v2.embed(
        model=MODEL, texts=TEXTS, input_type="search_document", embedding_types=["float"]
    )
    assert answer.embeddings.float_ is not None
    assert np.allclose(np.array(answer.embeddings.float_), vectors, atol=1e-6)
    assert answer.embeddings.int8 is None
    assert answer.texts == TEXTS
    assert answer.id
    assert answer.meta is not None
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.input_tokens


def test_all_types_come_in_one_answer(cohere_v2: cohere.ClientV2, vectors: NDArray[np.float32]) -> None:
    """Each is read by the SDK as what it is; int8 points where the floats do."""
    answer = cohere_v2.embed(
        model=MODEL,
        texts=TEXTS,
        input_type="search_query",
        embedding_types=["float", "int8", "uint8", "binary", "ubinary", "base64"],
    ).embeddings
    int8, uint8 = np.array(answer.int8), np.array(answer.uint8)
    assert np.array_equal(uint8, int8 + 128)
    lengths = np.linalg.norm(int8, axis=1)
    assert ((int8 * vectors).sum(axis=1) / lengths > 0.998).all()
    ubinary, binary = np.array(answer.ubinary), np.array(answer.binary)
    assert ubinary.shape == (3, 384 // 8)
    assert np.array_equal(binary, ubinary - 128)
    assert np.array_equal(np.unpackbits(ubinary.astype(np.uint8), axis=1), vectors > 0)
    assert answer.base64 is not None
    assert np.frombuffer(base64.b64decode(answer.base64[1]), "<f4") == pytest.approx(
        vectors[1], abs=1e-6
    )


def test_fewer_dimensions_are_of_unit_length(cohere_v2: cohere.ClientV2, service_url: str) -> None:
    """Floats and bytes alike are of the shortened vector; bytes by the range that the model tells."""
    answer = cohere_v2.embed(
        model=MODEL,
        texts=TEXTS,
        input_type="search_query",
        output_dimension=64,
        embedding_types=["float", "int8"],
    ).embeddings
    assert np.linalg.norm(np.array(answer.float_), axis=1) == pytest.approx([1] * 3, abs=1e-5)
    largest = http_get(f"{service_url}/v1/models/{MODEL}").json()["int8_ranges"]["48"]
    lengths = np.linalg.norm(np.array(answer.int8), axis=1) * largest / 127
    assert lengths == pytest.approx([1] * 3, rel=0.02)


def test_truncation_is_the_callers_choice(cohere_v2: cohere.ClientV2) -> None:
    """NONE refuses what is too long and names it; START and END keep the other end."""
    long = " ".join(["apple"] * 600 + ["engine"] * 600)
    with pytest.raises(BadRequestError) as caught:
        cohere_v2.embed(model=MODEL, texts=["a", long], input_type="search_query", truncate="NONE")
    assert "texts[1]" in caught.value.body["message"]
    start, end = (
        cohere_v2.embed(model=MODEL, texts=[long], input_type="search_query", truncate=side).embeddings
        for side in ("START", "END")
    )
    ends = cohere_v2.embed(
        model=MODEL,
        texts=[" ".join(["engine"] * 600), " ".join(["apple"] * 600)],
        input_type="search_query",
    ).embeddings
    assert ends.float_ is not None
    assert start.float_ is not None
    assert end.float_ is not None
    assert np.allclose(start.float_[0], ends.float_[0], atol=1e-5)
    assert np.allclose(end.float_[0], ends.float_[1], atol=1e-5)


def test_an_input_type_goes_to_the_backend(serve: Callable[[FakeBackend], str]) -> None:
    """Whoever holds the model knows whether it has a prompt for it."""
    backend = FakeBackend()
    with cohere.ClientV2(api_key="any", base_url=serve(backend)) as client:
        for input_type in ("search_query", "search_document"):
            client.embed(model="mini", texts=["a"], input_type=input_type)
    assert backend.requests == [
        EmbedRequest("mini", ("a",), input_type="query"),
        EmbedRequest("mini", ("a",), input_type="document"),
    ]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"texts": []}, "texts"),
        ({"texts": ["a", ""]}, "texts[1]"),
        ({"images": ["data:image/png;base64,AA"]}, "images"),
        ({"inputs": [{"content": [{"type": "text", "text": "a"}]}]}, "inputs"),
        ({"texts": ["a"], "embedding_types": ["int4"]}, "embedding_types"),
        ({"texts": ["a"], "output_dimension": 385}, "output_dimension"),
        ({"texts": ["a"], "max_tokens": 10}, "max_tokens"),
        ({"texts": ["a"], "truncate": "MIDDLE"}, "truncate"),
    ],
)
def test_a_bad_request_names_the_field(
    cohere_v2: cohere.ClientV2, options: dict[str, object], field: str
) -> None:
    """400 with a message, whatever the SDK let through."""
    with pytest.raises(BadRequestError) as caught:
        cohere_v2.embed(model=MODEL, input_type="search_query", **options)  # type: ignore[arg-type]
    assert field in caught.value.body["message"]


@pytest.mark.parametrize("name", ["nope", "no/such", f"{MODEL}@r1"])
def test_an_unknown_model_is_not_found(cohere_v2: cohere.ClientV2, name: str) -> None:
    """The SDK's exception tells what there is, the same whether the name could be one or not."""
    with pytest.raises(NotFoundError) as caught:
        cohere_v2.embed(model=name, texts=["a"], input_type="search_query")
    expected = f"there is no model '{name}'; there are: {MODEL}"
    assert caught.value.body["message"] == expected


def test_overload_is_too_many_requests(serve: Callable[[FakeBackend], str]) -> None:
    """The SDK sees when to come back."""
    url = serve(FakeBackend(error=Overloaded("the queue is full", retry_after_s=0.5)))
    with (
        cohere.ClientV2(api_key="any", base_url=url) as client,
        pytest.raises(TooManyRequestsError) as caught,
    ):
        client.embed(model="mini", texts=["a"], input_type="search_query", request_options=ONCE)
    assert (caught.value.headers or {})["retry-after-ms"] == "500"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the client's own, of pydantic
def test_the_older_client_reads_plain_floats_and_types(service_url: str) -> None:
    """cohere.Client posts to /v1/embed; without types `embeddings` is a list, with them an object."""
    with cohere.Client(api_key="any", base_url=service_url) as client:
        plain = client.embed(texts=TEXTS, model=MODEL, input_type="search_document")
        typed = client.embed(
            texts=TEXTS, model=MODEL, input_type="search_document", embedding_types=["int8", "float"]
        )
    assert isinstance(plain.embeddings, list)
    assert np.array(plain.embeddings).shape == (3, 384)
    assert not isinstance(typed.embeddings, list)
    assert typed.embeddings.float_ == plain.embeddings
    assert np.array(typed.embeddings.int8).shape == (3, 384)
