"""Measures a built sparse or multi-vector model through the serving code against its FP32 original.

It does not know how the model was built, whether it may be published, or where.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from model_build.fidelity import compare_vectors, told
from model_build.gates import Gates
from model_build.odd_texts import ODD_TEXTS
from model_build.originals_tokens import late_original, sparse_original
from model_build.samples import TEXTS, long_text, sample_rankings, sample_texts
from model_build.serving import Served
from model_build.source import SourceModel
from shared.contracts import FloatMatrix, InputType, SparseRow
from shared.errors import InvalidArtefact
from shared.models.manifest import Quality
from shared.vectors import finish, max_sim

_WARM_UP = 8
_BEYOND = 40
"""Extra words of a text that is longer than the model reads."""
_LONGEST = 512
"""Words of the longest text that is compared."""

_Encode = Callable[[Sequence[str], InputType], Sequence[Any]]
_Score = Callable[[Any, Sequence[Any]], list[float]]


def measure_sparse(
    served: Served, root: Path, source: SourceModel, gates: Gates, load_s: float
) -> Quality:
    """Cosines of the vectors with the original's, and rank agreement by their products.

    Raises InvalidArtefact and InvalidInput as `evaluate` does.
    """
    return _measure(
        served,
        sparse_original(root, source),
        source,
        gates,
        load_s,
        aligned=_in_shared_words,
        score=_products,
        active=lambda rows: round(float(np.mean([len(row.values) for row in rows])), 1),
    )


def measure_late(
    served: Served, root: Path, source: SourceModel, gates: Gates, load_s: float
) -> Quality:
    """As `measure_sparse`, of the tokens' vectors, and rank agreement by MaxSim."""
    original = late_original(root, source)
    queries = [each.query for each in sample_rankings()]
    _aligned(served.encode(queries, "query"), original(queries, "query"))  # of as many tokens
    return _measure(
        served,
        original,
        source,
        gates,
        load_s,
        aligned=_aligned,
        score=lambda query, documents: [max_sim(query, each) for each in documents],
        active=lambda rows: None,
    )


def _measure(
    served: Served,
    original: _Encode,
    source: SourceModel,
    gates: Gates,
    load_s: float,
    *,
    aligned: Callable[[Sequence[Any], Sequence[Any]], tuple[FloatMatrix, FloatMatrix]],
    score: _Score,
    active: Callable[[Sequence[Any]], float | None],
) -> Quality:
    """aligned: the model's rows and the original's -> (N, D) unit vectors of both."""
    usual, more = sample_texts(), _more_texts(source)
    served.encode(usual[:_WARM_UP], "document")
    started = time.perf_counter()
    rows = [*served.encode(usual, "document")]
    elapsed_s = time.perf_counter() - started
    rows += served.encode(more, "document")
    found = compare_vectors(*aligned(rows, original([*usual, *more], "document")), gates.cosine)
    agreements = _agreements(served.encode, original, score)
    figures = told(found, gates.cosine)
    figures["limits"] |= {"rank_agreement_mean": gates.rank_agreement}
    return Quality(
        **figures,
        rank_agreement_mean=float(np.mean(agreements)),
        rank_agreement_min=float(np.min(agreements)),
        active_mean=active(rows[:TEXTS]),
        batch_max_abs_diff=served.difference_by_batch(usual),
        load_s=load_s,
        inputs_per_s=round(len(usual) / elapsed_s, 1),
    )


def _more_texts(source: SourceModel) -> list[str]:
    odd = [text for texts in ODD_TEXTS.values() for text in texts if text.strip()]
    return [*odd, long_text(min(source.max_tokens + _BEYOND, _LONGEST))]


def _agreements(served: _Encode, original: _Encode, score: _Score) -> list[float]:
    """For each sample query, Spearman's correlation of its documents' scores with the original's."""
    found = []
    for ranking in sample_rankings():
        one, other = (
            score(encode([ranking.query], "query")[0], encode(ranking.documents, "document"))
            for encode in (served, original)
        )
        flat = np.ptp(one) == 0 or np.ptp(other) == 0
        found.append(float("nan") if flat else float(spearmanr(one, other).statistic))
    return found


def _in_shared_words(
    rows: Sequence[SparseRow], truth: Sequence[SparseRow]
) -> tuple[FloatMatrix, FloatMatrix]:
    """Both as matrices of the words that any text has, of unit length."""
    words = np.unique(np.concatenate([row.indices for row in (*rows, *truth)]))
    if not len(words):
        raise InvalidArtefact("the original gives no word a weight, in any sample text")
    made = []
    for each in (rows, truth):
        matrix = np.zeros((len(each), len(words)), np.float32)
        for numbers, row in zip(matrix, each, strict=True):
            numbers[np.searchsorted(words, row.indices)] = row.values
        made.append(finish(matrix, None, normalize=True))
    return made[0], made[1]


def _products(query: SparseRow, documents: Sequence[SparseRow]) -> list[float]:
    weights = dict(zip(query.indices.tolist(), query.values.tolist(), strict=True))
    return [
        sum(
            weights.get(index, 0.0) * value
            for index, value in zip(row.indices.tolist(), row.values.tolist(), strict=True)
        )
        for row in documents
    ]


def _aligned(
    rows: Sequence[FloatMatrix], truth: Sequence[FloatMatrix]
) -> tuple[FloatMatrix, FloatMatrix]:
    """All texts' tokens one behind the other. Raises InvalidArtefact unless they are as many."""
    counts, right = list(map(len, rows)), list(map(len, truth))
    if counts != right:
        at = next(index for index, count in enumerate(counts) if count != right[index])
        raise InvalidArtefact(
            f"of a sample text the built model gives {counts[at]} vectors, and sentence-transformers "
            f"{right[at]}"
        )
    return (
        finish(np.concatenate(rows), None, normalize=True),
        finish(np.concatenate(truth), None, normalize=True),
    )
