"""huggingface_hub's InferenceClient against the real service: it posts to the very URL it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from tokenizers import Tokenizer

from tests.fakes.backend import LABELS, FakeBackend, score_of
from tests.server import http_post

SENTENCES = ["Deep learning is easy.", "This is difficult, like rocket science.", "Bananas are yellow."]


@pytest.fixture(scope="module")
def client(service_url: str) -> Iterator[InferenceClient]:
    with InferenceClient(model=service_url, token="any") as client:
        yield client


def test_feature_extraction_embeds(client: InferenceClient, service_url: str) -> None:
    """At the base URL; the vectors are those of /embed, two-dimensional for one text too."""
    body = {"inputs": SENTENCES}
    expected = np.array(http_post(f"{service_url}/embed", json=body).json(), np.float32)
    assert np.array_equal(client.feature_extraction(SENTENCES[0]), expected[:1])
    raw = client.feature_extraction(SENTENCES[0], normalize=False, truncate=True)
    assert np.linalg.norm(raw) != pytest.approx(1, abs=1e-3)
    assert np.allclose(raw / np.linalg.norm(raw), expected[:1], atol=1e-6)


def test_sentence_similarity_compares(client: InferenceClient) -> None:
    """At the base URL too, told apart by its inputs; the numbers are the vectors' cosines."""
    vectors = [client.feature_extraction(text)[0] for text in ("Machine learning is easy.", *SENTENCES)]
    answer = client.sentence_similarity("Machine learning is easy.", SENTENCES)
    assert answer == pytest.approx([float(vectors[0] @ row) for row in vectors[1:]], abs=1e-5)
    assert answer[0] == max(answer)


def test_an_error_shows_what_is_wrong(client: InferenceClient) -> None:
    """The client's exception holds the server's message, with the field in TEI's words."""
    with pytest.raises(HfHubHTTPError, match=r"inputs\.sentences is empty"):
        client.sentence_similarity("a", [])


def test_tokens_are_those_of_the_models_tokenizer(service_url: str, minilm_store: Path) -> None:
    """At /tokenize, which the client has no method for: where a token stands, bytes say."""
    (path,) = minilm_store.rglob("tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = ["Deep learning is easy.", "naïve 日本語 \N{GRINNING FACE}", "", "word " * 600]
    rows = http_post(f"{service_url}/tokenize", json={"inputs": texts}).json()
    for text, row in zip(texts, rows, strict=True):
        assert [token["id"] for token in row] == tokenizer.encode(text).ids
        assert [token["text"] for token in (row[0], row[-1])] == ["[CLS]", "[SEP]"]
        for token in row[1:-1]:
            assert text.encode()[token["start"] : token["stop"]].decode() == token["text"]
    body = {"inputs": "easy", "add_special_tokens": False}
    (row,) = http_post(f"{service_url}/tokenize", json=body).json()
    assert [token["text"] for token in row] == ["easy"]


def test_ids_are_decoded_by_the_models_tokenizer(service_url: str, minilm_store: Path) -> None:
    """At /decode: as its tokenizer joins them, batches and special tokens too."""
    (path,) = minilm_store.rglob("tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = ["Deep learning is easy.", "naïve 日本語", "word " * 600]
    ids = [tokenizer.encode(text).ids for text in texts]
    answer = http_post(f"{service_url}/decode", json={"ids": ids})
    assert answer.json() == [tokenizer.decode(each) for each in ids]
    assert answer.json()[0] == "deep learning is easy."
    assert answer.headers["x-compute-tokens"] == str(sum(map(len, ids)))
    body = {"ids": ids[0], "skip_special_tokens": False}
    answer = http_post(f"{service_url}/decode", json=body)
    assert answer.json() == ["[CLS] deep learning is easy. [SEP]"]
    refused = http_post(f"{service_url}/decode", json={"ids": [[1012], [30522]]})
    assert refused.status_code == 422
    assert refused.json()["error"] == "ids[1]: this model's vocabulary has no id 30522"


def test_a_prompt_s_name_is_sent_only_if_the_caller_says_one(
    serve: Callable[[FakeBackend], str],
) -> None:
    """None is left out and means the model's default; "" is sent, and switches that off."""
    backend = FakeBackend("mini")
    with InferenceClient(model=serve(backend), token="any") as client:
        for name in (None, "", "query"):
            client.feature_extraction("a", prompt_name=name)
    asked = [getattr(request, "prompt_name", "?") for request in backend.requests]
    assert asked == [None, "", "query"]


def test_text_classification_reads_predictions(serve: Callable[[FakeBackend], str]) -> None:
    """At /predict. For one text the client takes the first of what TEI answers: the likeliest label."""
    url = serve(FakeBackend("label-1"))
    with InferenceClient(model=f"{url}/predict", token="any") as client:
        answer = client.text_classification("a text")
    likely = score_of("", "a text")
    assert answer.label == LABELS[likely > 0.5]
    assert answer.score == pytest.approx(max(likely, 1 - likely))
