"""How well the other forms of vectors that a service gives keep the order of similarities.

Those are vectors cut to the lengths that the model states, int8, and one bit a dimension. It does not
know models, texts or answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from scipy.stats import spearmanr

from shared.contracts import FloatMatrix
from shared.vectors import finish, to_int8

Form: TypeAlias = Callable[[FloatMatrix], FloatMatrix]
"""(N, D) unit vectors -> (N, D') unit vectors of the same directions as the form's numbers."""


def output_forms(dimensions: Sequence[int], int8_range: float = 1.0) -> Mapping[str, tuple[Form, Form]]:
    """Name -> the forms of a query and of a document. dimensions: shorter ones that the model states.

    int8_range: the manifest's, of the full vectors.
    """
    int8 = _int8(int8_range)
    shorter = {
        f"{size} dimensions": (_cut(size), _cut(size)) for size in sorted(set(dimensions), reverse=True)
    }
    return {
        **shorter,
        "int8": (int8, int8),
        "binary": (_binary, _binary),
        "float query, binary documents": (_as_is, _binary),
    }


def judge_outputs(
    vectors: FloatMatrix, truth: FloatMatrix, dimensions: Sequence[int], int8_range: float = 1.0
) -> dict[str, float]:
    """Form -> Spearman's correlation of the cosines of all pairs of rows with the original's.

    vectors, truth: (N, D) unit vectors of the built model and of the original. "float" is the vectors as
    they are. NaN where all cosines are the same.
    """
    above = ~np.tri(len(truth), dtype=bool)
    exact = (truth @ truth.T)[above]
    forms = {"float": (_as_is, _as_is), **output_forms(dimensions, int8_range)}
    return {
        name: correlation((query(vectors) @ document(vectors).T)[above], exact)
        for name, (query, document) in forms.items()
    }


def correlation(a: FloatMatrix, b: FloatMatrix) -> float:
    """Spearman's of two (N,), to six places; NaN if one is all the same."""
    flat = np.ptp(a) == 0 or np.ptp(b) == 0
    return float("nan") if flat else round(float(spearmanr(a, b).statistic), 6)


def largest_int8(vectors: FloatMatrix, int8_range: float = 1.0) -> int:
    """The largest number, of 127, that int8 answers of these unit vectors have."""
    return int(np.abs(to_int8(vectors, int8_range)).max())


def _as_is(vectors: FloatMatrix) -> FloatMatrix:
    return vectors


def _cut(size: int) -> Form:
    return lambda vectors: finish(vectors, min(size, vectors.shape[1]), normalize=True)


def _int8(int8_range: float) -> Form:
    return lambda vectors: finish(to_int8(vectors, int8_range).astype(np.float32), None, normalize=True)


def _binary(vectors: FloatMatrix) -> FloatMatrix:
    return finish(np.where(vectors > 0, np.float32(1), np.float32(-1)), None, normalize=True)
