"""Public benchmarks that say what a model is good for: read them, and score any way of embedding.

It does not know models: an `Embed` is all it needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from shared.contracts import FloatMatrix
from shared.errors import InvalidInput

CUT = 10  # nDCG@10

Embed = Callable[[Sequence[str], str | None], FloatMatrix]
"""Texts and a prompt's name (None: the model's default) -> (N, D) float32 unit vectors."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """STS: how alike people found each (a, b)."""

    name: str
    scores: list[float]
    a: list[str]
    b: list[str]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """corpus, queries: id -> text. relevant: query id -> document id -> grade, 1 or more."""

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, int]]


def read_evaluation(path: Path) -> Pairs | Retrieval:
    """A .tsv of score, a, b (lines without a score are skipped), or a folder in BEIR's layout.

    Raises InvalidInput (field "eval") naming the file and line.
    """
    try:
        return _read_retrieval(path) if path.is_dir() else _read_pairs(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} cannot be read", field="eval") from error


def sts_spearman(pairs: Pairs, embed: Embed) -> float:
    """Rank correlation of the cosines with the scores, -1 to 1."""
    cosines = (embed(pairs.a, None) * embed(pairs.b, None)).sum(axis=1)
    return float(spearmanr(cosines, pairs.scores).statistic)


def ndcg(task: Retrieval, embed: Embed, prompts: set[str]) -> float:
    """Mean nDCG@10 over the queries that have judgements, by exact search."""
    query_prompt = "query" if "query" in prompts else None
    document_prompt = next((p for p in ("document", "passage") if p in prompts), None)
    documents, queries = list(task.corpus), [q for q in task.queries if task.relevant.get(q)]
    vectors = embed(list(task.corpus.values()), document_prompt)
    scores = embed([task.queries[q] for q in queries], query_prompt) @ vectors.T
    discounts = 1 / np.log2(np.arange(2, CUT + 2))
    gains = []
    for row, query in zip(scores, queries, strict=True):
        grades = task.relevant[query]
        best = np.argsort(-row, kind="stable")[:CUT]
        got = np.array([2 ** grades.get(documents[i], 0) - 1 for i in best])
        ideal = np.array([2**g - 1 for g in sorted(grades.values(), reverse=True)[:CUT]])
        gains.append((got * discounts[: len(got)]).sum() / (ideal * discounts[: len(ideal)]).sum())
    return float(np.mean(gains))


def _read_pairs(path: Path) -> Pairs:
    pairs = Pairs(path.stem, [], [], [])
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        score, *texts = line.split("\t")
        if len(texts) < 2:
            raise _malformed(path, number, "is not score, a, b with tabs between")
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
    for number, line in enumerate(judgements.read_text("utf-8").splitlines(), start=1):
        if number == 1 and line.startswith("query-id"):
            continue
        try:
            query, document, grade = line.split("\t")
            if int(grade) > 0:
                relevant.setdefault(query, {})[document] = int(grade)
        except ValueError as error:
            raise _malformed(judgements, number, "is not query, document, grade") from error
    queries = _read_texts(path / "queries.jsonl")
    if not relevant.keys() & queries.keys():
        raise InvalidInput(f"{path.name} has no query with a relevant document", field="eval")
    return Retrieval(path.name, _read_texts(path / "corpus.jsonl"), queries, relevant)


def _read_texts(path: Path) -> dict[str, str]:
    """_id -> title and text of each JSON line; empty ones are left out."""
    texts = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            item = json.loads(line)
            text = f"{item.get('title') or ''} {item['text']}".strip()
            if text:
                texts[str(item["_id"])] = text
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _malformed(path, number, "is not an object with _id and text") from error
    return texts


def _malformed(path: Path, line: int, what: str) -> InvalidInput:
    return InvalidInput(f"{path.name}, line {line} {what}", field="eval")
