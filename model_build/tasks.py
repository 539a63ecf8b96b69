"""Reads public benchmarks (STS, answer selection, retrieval) and scores a model on them.

It does not know models: it calls an `Embed` or a `Score`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from model_build.outputs import correlation, output_forms
from shared.cards import Task
from shared.contracts import FloatMatrix
from shared.errors import InvalidInput
from shared.storage.regular_files import open_regular

CUT = 10  # of nDCG@10
_MAX_GRADE = 100  # the gain is 2 to the power of the grade
_MAX_FIELD = 131_072  # characters

Embed = Callable[[Sequence[str], str | None], FloatMatrix]
"""Texts and a prompt's name (None: the model's default) -> (N, D) float32 unit vectors."""

Score = Callable[[Sequence[tuple[str, str]]], FloatMatrix]
"""Pairs of texts -> (N, L) float32 logits."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """STS: human similarity scores of text pairs (a, b)."""

    name: str
    scores: list[float]
    a: list[str]
    b: list[str]


@dataclass(frozen=True, slots=True)
class Answers:
    """Answer selection: b[i] answers the question a[i] if right[i]. A question's rows are contiguous."""

    name: str
    right: list[bool]
    a: list[str]
    b: list[str]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """corpus, queries: id -> text. relevant: query id -> document id -> grade, 1 or more."""

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, int]]


Evaluation: TypeAlias = Pairs | Answers | Retrieval


def read_evaluation(path: Path) -> Evaluation:
    """A .csv of qtext, label, atext; a .tsv of score, a, b (lines without a score are skipped); or a
    folder in BEIR's layout.

    Raises InvalidInput (field "eval") naming the file and line.
    """
    try:
        if path.is_dir():
            return _read_retrieval(path)
        return _read_answers(path) if path.suffix == ".csv" else _read_pairs(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} cannot be read", field="eval") from error


def check_rankable(evaluations: Sequence[Evaluation], task: Task, labels: int) -> None:
    """Raise InvalidInput (field "eval") if a model of `task`, with so many labels, cannot run them."""
    if task == "embedding" or not evaluations:
        return
    if task != "cross-encoder":
        raise InvalidInput(
            f"a {task} model is measured on the builder's own texts: leave --eval out", field="eval"
        )
    if labels > 1:
        raise InvalidInput("the model has several labels, but --eval needs a single score", field="eval")
    for each in evaluations:
        if isinstance(each, Retrieval):
            raise InvalidInput(
                f"{each.name} is for embedding models: give a cross-encoder a .csv or .tsv", field="eval"
            )


def score_embedding(
    task: Evaluation,
    embed: Embed,
    prompts: set[str],
    dimensions: Sequence[int] = (),
    int8_range: float = 1.0,
) -> dict[str, float]:
    """Figure -> value. prompts: names of the model's prompts. dimensions: shorter ones that it states;
    STS and retrieval are scored with those too, and with int8 (of this range) and binary vectors."""
    forms = output_forms(dimensions, int8_range)
    if isinstance(task, Retrieval):
        search = search_of(task, embed, prompts)
        scored = {f"ndcg@{CUT}": ndcg(search, search.queries @ search.documents.T)}
        for name, (query, document) in forms.items():
            scores = query(search.queries) @ document(search.documents).T
            scored[f"ndcg@{CUT}, {name}"] = ndcg(search, scores)
        return scored
    query_prompt, document_prompt = _prompt_names(prompts) if isinstance(task, Answers) else (None, None)
    a, b = embed(task.a, query_prompt), embed(task.b, document_prompt)
    figures = _score(task, (a * b).sum(axis=1))
    if isinstance(task, Pairs):
        human = np.asarray(task.scores, np.float32)
        for name, (first, second) in forms.items():
            figures[f"spearman, {name}"] = correlation((first(a) * second(b)).sum(axis=1), human)
    return figures


def score_cross_encoder(task: Evaluation, score: Score) -> dict[str, float]:
    """Figure -> value, of a model and a task that pass `check_rankable`."""
    assert not isinstance(task, Retrieval)
    return _score(task, score(list(zip(task.a, task.b, strict=True)))[:, 0])


def _score(task: Pairs | Answers, scores: NDArray[np.float32]) -> dict[str, float]:
    if isinstance(task, Pairs):
        return {"spearman": float(spearmanr(scores, task.scores).statistic)}
    mean_average_precision, mean_reciprocal_rank = map_mrr(task, scores)
    return {"MAP": mean_average_precision, "MRR": mean_reciprocal_rank}


def map_mrr(task: Answers, scores: NDArray[np.float32]) -> tuple[float, float]:
    """Mean average precision and reciprocal rank over the questions with a right answer.

    As in trec_eval, questions with right answers only count.
    """
    precisions, reciprocals = [], []
    start = 0
    for _, lines in groupby(task.a):
        stop = start + len(list(lines))
        best = np.argsort(-scores[start:stop], kind="stable")
        ranks = np.flatnonzero(np.array(task.right[start:stop])[best]) + 1
        if len(ranks):
            precisions.append((np.arange(1, len(ranks) + 1) / ranks).mean())
            reciprocals.append(1 / ranks[0])
        start = stop
    return float(np.mean(precisions)), float(np.mean(reciprocals))


@dataclass(frozen=True, slots=True)
class Search:
    """A retrieval task's vectors. queries: (Q, D), those with judgements. documents: (N, D).

    grades: of each query, document's row -> grade.
    """

    queries: FloatMatrix
    documents: FloatMatrix
    grades: list[dict[int, int]]


def search_of(task: Retrieval, embed: Embed, prompts: set[str]) -> Search:
    """The vectors of a task's texts. prompts: names of the model's prompts."""
    query_prompt, document_prompt = _prompt_names(prompts)
    rows = {name: row for row, name in enumerate(task.corpus)}
    asked = [query for query in task.queries if task.relevant.get(query)]
    return Search(
        embed([task.queries[query] for query in asked], query_prompt),
        embed(list(task.corpus.values()), document_prompt),
        # A document that is not in the corpus is never found, but belongs to the ideal.
        [
            {
                rows.get(name, -1 - at): grade
                for at, (name, grade) in enumerate(task.relevant[query].items())
            }
            for query in asked
        ],
    )


def ndcg(search: Search, scores: FloatMatrix) -> float:
    """Mean nDCG@10 over the queries, by exact search. scores: (Q, N)."""
    discounts = 1 / np.log2(np.arange(2, CUT + 2))
    gains = []
    for row, grades in zip(scores, search.grades, strict=True):
        best = np.argsort(-row, kind="stable")[:CUT]
        got = np.array([2 ** grades.get(int(each), 0) - 1 for each in best])
        ideal = np.array([2**grade - 1 for grade in sorted(grades.values(), reverse=True)[:CUT]])
        gains.append((got * discounts[: len(got)]).sum() / (ideal * discounts[: len(ideal)]).sum())
    return float(np.mean(gains))


def _prompt_names(prompts: set[str]) -> tuple[str | None, str | None]:
    """The prompts made for queries and for documents, where a model has them."""
    query = "query" if "query" in prompts else None
    return query, next((name for name in ("document", "passage") if name in prompts), None)


def _read_answers(path: Path) -> Answers:
    answers = Answers(path.stem, [], [], [])
    with io.TextIOWrapper(open_regular(path), "utf-8", newline="") as stream:
        csv.field_size_limit(_MAX_FIELD)  # process-wide
        rows = csv.DictReader(stream)
        for row in _each(rows, path):
            question, label, answer = (row.get(name) for name in ("qtext", "label", "atext"))
            if label not in ("0", "1") or not question or not answer:
                raise _malformed(path, rows.line_num, "has no qtext, label (0 or 1) and atext")
            answers.right.append(label == "1")
            answers.a.append(question)
            answers.b.append(answer)
    if not any(answers.right):
        raise InvalidInput(f"{path.name} has no question with a right answer", field="eval")
    return answers


def _each(rows: csv.DictReader[str], path: Path) -> Iterator[dict[str | Any, str | Any]]:
    try:
        yield from rows
    except csv.Error as error:
        raise _malformed(
            path, rows.line_num + 1, "is not valid CSV, or has a field of over 131,072 characters"
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1."""
    with open_regular(path) as stream:
        text = stream.read().decode()
    yield from enumerate(text.splitlines(), start=1)


def _read_pairs(path: Path) -> Pairs:
    pairs = Pairs(path.stem, [], [], [])
    for number, line in _lines(path):
        score, *texts = line.split("\t")
        if len(texts) < 2:
            raise _malformed(path, number, "is not score, a, b separated by tabs")
        if not score.strip() or not texts[0] or not texts[1]:
            continue
        try:
            pairs.scores.append(float(score))
        except ValueError as error:
            raise _malformed(path, number, "does not begin with a number") from error
        pairs.a.append(texts[0])
        pairs.b.append(texts[1])
    if len(pairs.scores) < 2:
        raise InvalidInput(f"{path.name} has fewer than two scored pairs", field="eval")
    return pairs


def _read_retrieval(path: Path) -> Retrieval:
    relevant: dict[str, dict[str, int]] = {}
    judgements = path / "qrels" / "test.tsv"
    for number, line in _lines(judgements):
        if number == 1 and line.startswith("query-id"):
            continue
        try:
            query, document, grade = line.split("\t")
            if int(grade) > _MAX_GRADE:
                raise ValueError
            if int(grade) > 0:
                relevant.setdefault(query, {})[document] = int(grade)
        except ValueError as error:
            raise _malformed(
                judgements, number, f"is not query, document, grade (0 to {_MAX_GRADE})"
            ) from error
    queries = _read_texts(path / "queries.jsonl")
    if not relevant.keys() & queries.keys():
        raise InvalidInput(f"{path.name} has no query with a relevant document", field="eval")
    return Retrieval(path.name, _read_texts(path / "corpus.jsonl"), queries, relevant)


def _read_texts(path: Path) -> dict[str, str]:
    """_id -> title and text of each JSON line; empty ones are left out."""
    texts = {}
    for number, line in _lines(path):
        try:
            item = json.loads(line)
            text = f"{item.get('title') or ''} {item['text']}".strip()
            if text:
                texts[str(item["_id"])] = text
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _malformed(path, number, "is not an object with _id and text") from error
    return texts


def _malformed(path: Path, line: int, what: str) -> InvalidInput:
    return InvalidInput(f"{path.name}, line {line} {what}", field="eval")
