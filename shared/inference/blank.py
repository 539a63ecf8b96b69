"""Blank documents of a rerank: left out before a model scores, put back below all that it scored.

Does not know models, nor which part of a caller's request this is: all documents of a part may be blank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from msgspec.structs import replace

from shared.contracts import DoubleMatrix, FloatMatrix, RerankRequest, RerankResult, is_blank

Numbers = TypeVar("Numbers", FloatMatrix, DoubleMatrix)

LOWEST_COSINE = -1.0
LOWEST_LOGIT = float(np.finfo(np.float32).min)
"""Not minus infinity, which JSON has no way to write. Its sigmoid is 0."""

_STAND_IN = "."
"""Scored when all documents are blank, so that model, revision and errors come out the usual way."""


def scored_indices(request: RerankRequest) -> list[int]:
    """Which of its documents a model is asked about: those that are not blank."""
    return [index for index, text in enumerate(request.documents) if not is_blank(text)]


def without_blank(request: RerankRequest, scored: Sequence[int]) -> RerankRequest:
    """`request` for the documents at `scored` alone; for a stand-in if there are none."""
    documents = tuple(request.documents[index] for index in scored)
    return replace(request, documents=documents or (_STAND_IN,))


def with_blank(
    result: RerankResult,
    request: RerankRequest,
    scored: Sequence[int],
    lowest: float = LOWEST_COSINE,
) -> RerankResult:
    """The result for all documents of `request`, from that for those at `scored` or the stand-in.

    Blank ones have the lowest score, the lowest logit and no tokens. lowest: score without logits.
    """
    counts = [0] * len(request.documents)
    for index, tokens in zip(scored, result.token_counts, strict=False):
        counts[index] = tokens
    logits = None
    if result.logits is not None:
        lowest = LOWEST_LOGIT if request.raw_scores else 0.0
        logits = _placed(result.logits, scored, len(counts), LOWEST_LOGIT)
    return replace(
        result,
        scores=_placed(result.scores, scored, len(counts), lowest),
        logits=logits,
        token_counts=tuple(counts),
        cut=tuple(scored[row] for row in result.cut if row < len(scored)),
    )


def _placed(values: Numbers, at: Sequence[int], count: int, others: float) -> Numbers:
    """(count,): `values` in their order `at` these indices, `others` everywhere else."""
    placed = np.full(count, others, values.dtype)
    placed[[*at]] = values[: len(at)]
    return placed
