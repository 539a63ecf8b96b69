"""Benchmark readers and scores, without a real model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from model_build.tasks import (
    Answers,
    Pairs,
    Retrieval,
    check_rankable,
    map_mrr,
    read_evaluation,
    score_cross_encoder,
    score_embedding,
)
from shared.contracts import FloatMatrix
from shared.errors import InvalidInput


def by_letter(texts: Sequence[str], prompt: str | None) -> FloatMatrix:
    """Two dimensions: how far through the alphabet the first letter is, as an angle."""
    angles = np.array([(ord(text[0]) - ord("a")) / 26 for text in texts], np.float32)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_spearman_is_one_for_the_same_order_and_minus_one_for_the_opposite() -> None:
    """Only ranks count."""
    a, b = ["a", "a", "a"], ["b", "d", "z"]
    same, opposite = Pairs("x", [5, 3, 0], a, b), Pairs("x", [0, 3, 5], a, b)
    assert score_embedding(same, by_letter, set())["spearman"] == pytest.approx(1)
    assert score_embedding(opposite, by_letter, set())["spearman"] == pytest.approx(-1)


def test_sts_is_scored_with_every_form_of_a_vector() -> None:
    """Those that a service gives: the lengths that the model states, int8 and bits."""
    task = Pairs("x", [5, 3, 0], ["a", "a", "a"], ["b", "d", "z"])
    figures = score_embedding(task, by_letter, set(), [1])
    assert set(figures) == {
        "spearman",
        "spearman, 1 dimensions",
        "spearman, int8",
        "spearman, binary",
        "spearman, float query, binary documents",
    }
    assert figures["spearman, int8"] == pytest.approx(1)
    # One number of unit length is 1, whatever it was.
    assert np.isnan(figures["spearman, 1 dimensions"])


def test_ndcg_matches_a_hand_calculation() -> None:
    """Relevant documents at ranks 1 and 3 of three: (1 + 1/2) / (1 + 1/log2(3))."""
    corpus = {"d1": "a", "d2": "b", "d3": "c"}
    task = Retrieval("x", corpus, {"q": "a", "unjudged": "b"}, {"q": {"d1": 1, "d3": 1}})
    figures = score_embedding(task, by_letter, set(), [1])
    assert figures["ndcg@10"] == pytest.approx(1.5 / (1 + 1 / np.log2(3)))
    assert figures["ndcg@10, int8"] == figures["ndcg@10"]
    # With one number or two bits, all are the same: the order is that of the corpus.
    for form in ("1 dimensions", "binary"):
        assert figures[f"ndcg@10, {form}"] == figures["ndcg@10"]


def test_documents_that_are_not_in_the_corpus_belong_to_the_ideal() -> None:
    """One of two relevant documents can be found, at rank 1: 1 / (1 + 1/log2(3))."""
    task = Retrieval("x", {"d1": "a"}, {"q": "a"}, {"q": {"d1": 1, "gone": 1}})
    figures = score_embedding(task, by_letter, set())
    assert figures["ndcg@10"] == pytest.approx(1 / (1 + 1 / np.log2(3)))


def test_ndcg_uses_the_models_own_prompts() -> None:
    """Queries and documents are embedded with the prompts made for them."""
    seen: list[str | None] = []

    def embed(texts: Sequence[str], prompt: str | None) -> FloatMatrix:
        seen.append(prompt)
        return by_letter(texts, prompt)

    task = Retrieval("x", {"d": "a"}, {"q": "a"}, {"q": {"d": 1}})
    score_embedding(task, embed, {"query", "passage"})
    assert sorted(map(str, seen)) == ["passage", "query"]


def test_map_and_mrr_match_a_hand_calculation() -> None:
    """Right answers at ranks 1 and 3, then at rank 2; a question without one is left out."""
    task = Answers(
        "x",
        [True, False, True, False, True, False],
        ["q1", "q1", "q1", "q2", "q2", "q3"],
        ["a"] * 6,
    )
    scores = np.array([0.9, 0.5, 0.1, 0.8, 0.2, 0.3], np.float32)
    assert map_mrr(task, scores) == pytest.approx(((5 / 6 + 1 / 2) / 2, (1 + 1 / 2) / 2))


def test_answers_are_scored_by_either_kind_of_model() -> None:
    """By cosine with the prompts made for them, or by a cross-encoder's only logit."""
    task = Answers("x", [False, True], ["a", "a"], ["z", "b"])
    prompts: list[str | None] = []

    def embed(texts: Sequence[str], prompt: str | None) -> FloatMatrix:
        prompts.append(prompt)
        return by_letter(texts, prompt)

    def score(pairs: Sequence[tuple[str, str]]) -> FloatMatrix:
        assert list(pairs) == [("a", "z"), ("a", "b")]
        return np.array([[2.0], [1.0]], np.float32)

    assert score_embedding(task, embed, {"query", "document"}) == {"MAP": 1, "MRR": 1}
    assert sorted(map(str, prompts)) == ["document", "query"]
    assert score_cross_encoder(task, score) == {"MAP": 0.5, "MRR": 0.5}


def test_several_labels_or_a_corpus_cannot_be_ranked() -> None:
    """A cross-encoder has one score for a pair, and no vectors to search by."""
    retrieval = Retrieval("nano", {"d": "a"}, {"q": "a"}, {"q": {"d": 1}})
    with pytest.raises(InvalidInput, match="several labels"):
        check_rankable([Pairs("x", [1, 2], ["a", "a"], ["b", "c"])], "cross-encoder", 3)
    with pytest.raises(InvalidInput, match="nano is for embedding models"):
        check_rankable([retrieval], "cross-encoder", 1)
    check_rankable([], "cross-encoder", 3)
    with pytest.raises(InvalidInput, match="a sparse model is measured on the builder's own texts"):
        check_rankable([retrieval], "sparse", 0)


def test_answers_are_read_from_a_csv(tmp_path: Path) -> None:
    """Quotes and commas in texts are CSV's."""
    path = tmp_path / "qa.csv"
    path.write_text('qtext,label,atext\nWho ?,0,"a, b"\nWho ?,1,c\n')
    assert read_evaluation(path) == Answers("qa", [False, True], ["Who ?"] * 2, ["a, b", "c"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("qtext,label,atext\nq,1,a\nq,maybe,a\n", "line 3"),
        ("question,label,answer\nq,1,a\n", "line 2"),
        ("qtext,label,atext\nq,0,a\n", "no question with a right answer"),
        ("qtext,label,atext\nq,1," + "a" * 200_000, "line 2"),
    ],
)
def test_malformed_answers_are_named(content: str, message: str, tmp_path: Path) -> None:
    """The error says which line of which file."""
    path = tmp_path / "qa.csv"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=message) as refusal:
        read_evaluation(path)
    assert refusal.value.field == "eval"


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
    (folder / "corpus.jsonl").write_text("[" * 100_000)
    with pytest.raises(InvalidInput, match=r"corpus.jsonl, line 1"):
        read_evaluation(folder)
    (folder / "queries.jsonl").unlink()
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_evaluation(folder)
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1000000000\n")
    with pytest.raises(InvalidInput, match=r"test.tsv, line 1 .*0 to 100"):
        read_evaluation(folder)


@pytest.mark.parametrize("name", ["sts.tsv", "qa.csv", "nano/queries.jsonl"])
def test_what_is_no_regular_file_is_named_and_not_waited_for(name: str, tmp_path: Path) -> None:
    """Nobody writes to the FIFO."""
    folder = beir(tmp_path / "nano")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_evaluation(folder if name.startswith("nano") else tmp_path / name)
