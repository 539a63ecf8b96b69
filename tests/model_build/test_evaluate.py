"""Gates, sample texts and benchmark readers, without a real model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from model_build.evaluate import sample_texts, shortfalls
from model_build.tasks import Pairs, Retrieval, ndcg, read_evaluation, sts_spearman
from shared.contracts import FloatMatrix
from shared.errors import InvalidInput
from shared.manifest import Quality


def quality(cosine: float = 0.999, difference: float = 0.0) -> Quality:
    return Quality(cosine, cosine, cosine, difference, 0.1, 10.0)


def test_a_good_model_passes_every_gate() -> None:
    """Nothing falls short at the limit itself."""
    assert shortfalls(quality(0.99), 0.99) == []


@pytest.mark.parametrize("cosine", [0.98, float("nan")])
def test_a_low_or_undefined_cosine_falls_short(cosine: float) -> None:
    """A model of NaNs compares false with everything and must not slip through."""
    (message,) = shortfalls(quality(cosine), 0.99)
    assert "--min-cosine" in message


@pytest.mark.parametrize("difference", [1e-6, float("nan")])
def test_a_vector_that_depends_on_its_batch_falls_short(difference: float) -> None:
    """1e-6 is already too much, and NaN too."""
    (message,) = shortfalls(quality(difference=difference), 0.99)
    assert "batch" in message


def test_sample_texts_are_varied_and_always_the_same() -> None:
    """Figures of two builds are comparable only over the same texts."""
    texts = sample_texts()
    lengths = [len(text.split()) for text in texts]
    assert texts == sample_texts()
    assert len(set(texts)) == 200
    assert (min(lengths), max(lengths)) == (3, 200)


def by_letter(texts: Sequence[str], prompt: str | None) -> FloatMatrix:
    """Two dimensions: how far through the alphabet the first letter is, as an angle."""
    angles = np.array([(ord(text[0]) - ord("a")) / 26 for text in texts], np.float32)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_spearman_is_one_for_the_same_order_and_minus_one_for_the_opposite() -> None:
    """Only ranks count."""
    a, b = ["a", "a", "a"], ["b", "d", "z"]
    assert sts_spearman(Pairs("x", [5, 3, 0], a, b), by_letter) == pytest.approx(1)
    assert sts_spearman(Pairs("x", [0, 3, 5], a, b), by_letter) == pytest.approx(-1)


def test_ndcg_matches_a_hand_calculation() -> None:
    """Relevant documents at ranks 1 and 3 of three: (1 + 1/2) / (1 + 1/log2(3))."""
    corpus = {"d1": "a", "d2": "b", "d3": "c"}
    task = Retrieval("x", corpus, {"q": "a", "unjudged": "b"}, {"q": {"d1": 1, "d3": 1}})
    assert ndcg(task, by_letter, set()) == pytest.approx(1.5 / (1 + 1 / np.log2(3)))


def test_ndcg_uses_the_models_own_prompts() -> None:
    """Queries and documents are embedded with the prompts made for them."""
    seen: list[str | None] = []

    def embed(texts: Sequence[str], prompt: str | None) -> FloatMatrix:
        seen.append(prompt)
        return by_letter(texts, prompt)

    task = Retrieval("x", {"d": "a"}, {"q": "a"}, {"q": {"d": 1}})
    ndcg(task, embed, {"query", "passage"})
    assert sorted(map(str, seen)) == ["passage", "query"]


def test_pairs_without_a_score_are_skipped(tmp_path: Path) -> None:
    """SemEval files leave most scores empty."""
    path = tmp_path / "sts.tsv"
    path.write_text("\tno\tscore\n4.5\tone\ttwo\n0\tthree\tfour\n")
    assert read_evaluation(path) == Pairs("sts", [4.5, 0.0], ["one", "three"], ["two", "four"])


@pytest.mark.parametrize(
    ("content", "message"),
    [("1\ta\tb\nno tabs\n", "line 2"), ("x\ta\tb\n", "line 1"), ("1\ta\tb\n", "fewer than two")],
)
def test_malformed_pairs_are_named(content: str, message: str, tmp_path: Path) -> None:
    """The error says which line of which file."""
    path = tmp_path / "sts.tsv"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=message) as refusal:
        read_evaluation(path)
    assert refusal.value.field == "eval"


def beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": "d1", "title": "T", "text": "x"}, {"_id": "d2", "title": "", "text": ""}]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": "why"}))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n")
    return folder


def test_a_beir_folder_is_read(tmp_path: Path) -> None:
    """Titles are prepended, empty documents and grades of 0 left out."""
    task = read_evaluation(beir(tmp_path / "nano"))
    assert task == Retrieval("nano", {"d1": "T x"}, {"q1": "why"}, {"q1": {"d1": 2}})


def test_a_broken_beir_folder_is_named(tmp_path: Path) -> None:
    """A missing file and a line that is not JSON are bad input, not crashes."""
    folder = beir(tmp_path / "nano")
    (folder / "corpus.jsonl").write_text("{}\n")
    with pytest.raises(InvalidInput, match=r"corpus.jsonl, line 1"):
        read_evaluation(folder)
    (folder / "queries.jsonl").unlink()
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_evaluation(folder)
