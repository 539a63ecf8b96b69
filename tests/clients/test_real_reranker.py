"""A real cross-encoder, built by the real command and asked over HTTP, against its FP32 original."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import cohere
import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers import CrossEncoder

from tests.server import ROOT, http_post, running_service

DATA = ROOT.parent / "shared" / "data"
QUESTIONS, ANSWERS = 5, 12


@pytest.fixture(scope="module")
def service(reranker_store: Path) -> Iterator[str]:
    with running_service(f"file://{reranker_store}") as url:
        yield url


@pytest.fixture(scope="module")
def questions() -> dict[str, list[str]]:
    """The first questions of TREC QA that have six answers or more to rank."""
    answers: dict[str, list[str]] = {}
    with (DATA / "trecqa" / "dev.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            answers.setdefault(row["qtext"], []).append(row["atext"])
    many = {question: texts[:ANSWERS] for question, texts in answers.items() if len(texts) >= 6}
    return dict(list(many.items())[:QUESTIONS])


def test_scores_are_near_the_originals(service: str, questions: dict[str, list[str]]) -> None:
    """Within 0.08 of the FP32 sigmoid, and in nearly the same order."""
    original = CrossEncoder(str(DATA / "reranker"), device="cpu", model_kwargs={"dtype": "float32"})
    agreements = []
    for query, texts in questions.items():
        answer = http_post(f"{service}/rerank", json={"query": query, "texts": texts})
        assert answer.headers["x-rerank-method"] == "cross-encoder"
        ranked = answer.json()
        assert [each["score"] for each in ranked] == sorted((e["score"] for e in ranked), reverse=True)
        ours = np.empty(len(texts))
        ours[[each["index"] for each in ranked]] = [each["score"] for each in ranked]
        theirs = original.predict([(query, text) for text in texts])
        np.testing.assert_allclose(ours, theirs, atol=0.08)
        agreements.append(spearmanr(ours, theirs).statistic)
    assert np.mean(agreements) > 0.95


def test_a_pairs_score_does_not_depend_on_the_other_documents(
    service: str, questions: dict[str, list[str]]
) -> None:
    """A document alone scores as among the others."""
    query, texts = next(iter(questions.items()))
    together = http_post(f"{service}/rerank", json={"query": query, "texts": texts}).json()
    scores = {each["index"]: each["score"] for each in together}
    for index in (0, len(texts) - 1):
        alone = http_post(f"{service}/rerank", json={"query": query, "texts": [texts[index]]}).json()
        assert alone[0]["score"] == pytest.approx(scores[index], abs=1e-6)


def test_coheres_client_gets_the_same_scores(service: str, questions: dict[str, list[str]]) -> None:
    """One score, whatever the dialect; raw scores and predictions are of the same logit."""
    query, texts = next(iter(questions.items()))
    best = http_post(f"{service}/rerank", json={"query": query, "texts": texts}).json()[0]
    with cohere.ClientV2(api_key="any", base_url=service) as client:
        (first,) = client.rerank(model="reranker", query=query, documents=texts, top_n=1).results
    assert (first.index, first.relevance_score) == (
        best["index"],
        pytest.approx(best["score"], abs=1e-6),
    )
    body = {"query": query, "texts": texts, "raw_scores": True}
    logit = http_post(f"{service}/rerank", json=body).json()[0]["score"]
    assert 1 / (1 + np.exp(-logit)) == pytest.approx(best["score"], abs=1e-5)
    predicted = http_post(f"{service}/predict", json={"inputs": [query, texts[best["index"]]]}).json()
    assert predicted == [{"score": pytest.approx(best["score"], abs=1e-6), "label": "LABEL_0"}]


def test_a_cross_encoder_has_no_vectors(service: str) -> None:
    """The error says what to do instead."""
    answer = http_post(f"{service}/v1/embeddings", json={"model": "reranker", "input": "x"})
    assert answer.status_code == 400
    assert "cross-encoder" in answer.json()["error"]["message"]
