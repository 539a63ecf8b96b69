"""The official OpenAI SDK against a real server: what it sends by itself, what it makes of errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from openai import AzureOpenAI, BadRequestError, NotFoundError, OpenAI, RateLimitError

from shared.errors import Overloaded
from tests.fakes.backend import FakeBackend, vector_of

TEXTS = ["the first text", "second"]


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend("mini", "maxi")


@pytest.fixture(scope="module")
def url(backend: FakeBackend, serve: Callable[[FakeBackend], str]) -> str:
    return serve(backend)


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_default_and_float_encodings_are_equal(client: OpenAI) -> None:
    """The SDK asks for base64 by itself; both give the vectors that the backend made."""
    default = client.embeddings.create(model="mini", input=TEXTS)
    floats = client.embeddings.create(model="mini", input=TEXTS, encoding_format="float")
    for index, text in enumerate(TEXTS):
        expected = vector_of(text, 8)
        assert np.array_equal(np.array(default.data[index].embedding, np.float32), expected)
        assert np.array_equal(np.array(floats.data[index].embedding, np.float32), expected)
    assert default.usage.total_tokens == sum(map(len, TEXTS))
    assert default.model == "mini"


def test_explicit_base64_is_left_to_the_caller(client: OpenAI) -> None:
    """Asked for explicitly, the SDK hands out the string as it came."""
    answer = client.embeddings.create(model="mini", input="a", encoding_format="base64")
    assert isinstance(answer.data[0].embedding, str)


def test_dimensions_are_passed_on(client: OpenAI) -> None:
    """The vectors have the length that was asked for."""
    answer = client.embeddings.create(model="mini", input="a", dimensions=3, user="u")
    assert len(answer.data[0].embedding) == 3


def test_an_unknown_model_raises_not_found_with_the_names(client: OpenAI) -> None:
    """The exception's text tells which models there are."""
    with pytest.raises(NotFoundError, match="maxi, mini") as caught:
        client.embeddings.create(model="nope", input="a")
    assert caught.value.code == "model_not_found"


def test_a_bad_request_names_the_parameter(client: OpenAI) -> None:
    """The SDK's `param` is the field, and so does the text of its exception say, which has no more."""
    for options, field in (({"input": ["a", ""]}, "input[1]"), ({"dimensions": "x"}, "dimensions")):
        with pytest.raises(BadRequestError) as caught:
            client.embeddings.create(**{"model": "mini", "input": "a", **options})  # type: ignore[arg-type]
        assert caught.value.param == field
        assert field in str(caught.value)


def test_token_ids_are_refused_with_the_remedy(client: OpenAI) -> None:
    """LangChain's default sends ids; the message names its switch."""
    with pytest.raises(BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model="mini", input=[[1, 2]])


def test_overload_is_a_rate_limit_error(client: OpenAI, backend: FakeBackend) -> None:
    """The SDK sees when to come back."""
    backend.error = Overloaded("the queue is full", retry_after_s=0.5)
    try:
        with pytest.raises(RateLimitError) as caught:
            client.embeddings.create(model="mini", input="a")
    finally:
        backend.error = None
    assert caught.value.response.headers["retry-after-ms"] == "500"


def test_models_are_listed(client: OpenAI) -> None:
    """client.models works, list and single."""
    assert [model.id for model in client.models.list()] == ["maxi", "mini"]
    assert client.models.retrieve("maxi").id == "maxi"


def test_the_azure_client_finds_its_deployment(url: str) -> None:
    """The deployment in the path is the model."""
    with AzureOpenAI(azure_endpoint=url, api_key="any", api_version="2024-10-21") as client:
        answer = client.embeddings.create(model="maxi", input="a")
    assert answer.model == "maxi"
    assert np.array_equal(np.array(answer.data[0].embedding, np.float32), vector_of("a", 8))
