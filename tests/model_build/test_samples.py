"""The made-up texts that every build is measured on."""

from __future__ import annotations

from model_build.samples import DOCUMENTS, QUERIES, sample_rankings, sample_texts


def test_sample_texts_are_varied_and_always_the_same() -> None:
    """Figures of two builds are comparable only over the same texts."""
    texts = sample_texts()
    lengths = [len(text.split()) for text in texts]
    assert texts == sample_texts()
    assert len(set(texts)) == 200
    assert (min(lengths), max(lengths)) == (3, 200)


def test_sample_documents_go_from_the_answer_to_the_unrelated() -> None:
    """Always the same, no two alike, and the last of each query answers it word for word."""
    rankings = sample_rankings()
    assert rankings == sample_rankings()
    assert len(rankings) == QUERIES
    for ranking in rankings:
        assert len(set(ranking.documents)) == DOCUMENTS
        asked = ranking.query.removeprefix("Who ").removesuffix("?")
        assert asked in ranking.documents[-1]
        assert asked not in ranking.documents[0]
    lengths = [len(document.split()) for ranking in rankings for document in ranking.documents]
    assert min(lengths) < 15
    assert max(lengths) > 80
