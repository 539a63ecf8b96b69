"""Similarity of a built model's vectors to its original's, and the limits of each target.

It does not know models, texts or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from shared.contracts import DoubleMatrix, FloatMatrix
from shared.models.manifest import Target


@dataclass(frozen=True, slots=True)
class FidelityTarget:
    """Limits that a model's vectors must reach for it to be published.

    mean, minimum: of the texts' cosines with the original. low, low_share: at most this share of the
    texts may have a cosine below `low`. centred: the mean cosine after the original's mean vector is
    subtracted from both. Where all vectors of a model lie close together, their mean makes every cosine
    high: one such model had 0.9989 before the subtraction and 0.23 after.
    """

    mean: float
    minimum: float
    low: float
    low_share: float
    centred: float

    def __str__(self) -> str:
        return (
            f"mean {self.mean:g}, minimum {self.minimum:g}, at most {self.low_share:.1%} of the texts "
            f"below {self.low:g}, centred {self.centred:g}"
        )


TARGETS: Mapping[Target, FidelityTarget] = {
    # all-MiniLM-L6-v2 over the builder's own texts: mean 0.9988, minimum 0.9948. all-mpnet-base-v2 over
    # 1,800 others: mean 0.9980, minimum 0.9926.
    "cpu-int8": FidelityTarget(mean=0.996, minimum=0.98, low=0.99, low_share=0.01, centred=0.99),
    # all-MiniLM-L6-v2 over 400 other texts: mean 0.9973, minimum 0.9899.
    "cpu-int8-static": FidelityTarget(mean=0.99, minimum=0.96, low=0.98, low_share=0.01, centred=0.98),
    "cpu-bf16": FidelityTarget(mean=0.9995, minimum=0.999, low=0.9995, low_share=0.01, centred=0.999),
    "cpu-fp32": FidelityTarget(mean=0.9999, minimum=0.9999, low=0.9999, low_share=0, centred=0.999),
    "cpu-static": FidelityTarget(mean=0.9999, minimum=0.9999, low=0.9999, low_share=0, centred=0.999),
    "gpu-fp16": FidelityTarget(mean=0.999, minimum=0.999, low=0.999, low_share=0, centred=0.99),
}

INT8_AIM = FidelityTarget(mean=0.997, minimum=0.99, low=0.99, low_share=0, centred=0.99)
"""What an INT8 model should reach: where it does not, some of its layers are kept in FP32."""


TOKEN_TARGETS: Mapping[Target, FidelityTarget] = {
    "cpu-int8": FidelityTarget(mean=0.99, minimum=0.95, low=0.98, low_share=0.01, centred=0.98),
    "cpu-fp32": FidelityTarget(mean=0.9999, minimum=0.999, low=0.9999, low_share=0.01, centred=0.999),
    "gpu-fp16": FidelityTarget(mean=0.999, minimum=0.99, low=0.999, low_share=0.01, centred=0.99),
}
"""Of sparse vectors, and of the vectors of single tokens, for which nothing is averaged."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Statistics of the texts' cosines with the original; fields as in FidelityTarget.

    p01: first percentile. worst: index of the text with the minimum.
    """

    mean: float
    p01: float
    minimum: float
    low_share: float
    centred: float
    worst: int


def compare_vectors(vectors: FloatMatrix, truth: FloatMatrix, target: FidelityTarget) -> Fidelity:
    """Both (N, D) float32, one unit vector per text, or zeros where model2vec leaves all tokens out.

    Two rows of zeros count as equal. Rows that are not finite give a Fidelity of NaN, which fails every
    target.
    """
    a, b = vectors.astype(np.float64), truth.astype(np.float64)
    cosines = np.where(a.any(axis=1) | b.any(axis=1), (a * b).sum(axis=1), 1.0)
    return Fidelity(
        mean=float(cosines.mean()),
        p01=float(np.percentile(cosines, 1)),
        minimum=float(cosines.min()),
        low_share=float((~(cosines >= target.low)).mean()),
        centred=_centred(a, b),
        worst=int(cosines.argmin()),
    )


def _centred(a: DoubleMatrix, b: DoubleMatrix) -> float:
    """Mean cosine about the mean of `b`, weighted by the texts' distances from it.

    Without weights, a text whose vector is almost the mean would count by its rounding error.
    """
    a, b = a - b.mean(axis=0), b - b.mean(axis=0)
    product, squares = (a * b).sum(), (a**2).sum() * (b**2).sum()
    # If all texts have the same vector, there is nothing to compare.
    return float(product / np.sqrt(squares)) if squares > 0 else 1.0


def told(found: Fidelity, target: FidelityTarget) -> dict[str, Any]:
    """As fields of Quality: the figures, and what they had to reach."""
    return {
        "cosine_mean": found.mean,
        "cosine_p01": found.p01,
        "cosine_min": found.minimum,
        "cosine_centred": found.centred,
        "cosine_low_share": found.low_share,
        "limits": {f"cosine_{name}": value for name, value in asdict(target).items()},
    }


def relaxed(
    target: FidelityTarget, mean: float | None = None, minimum: float | None = None
) -> FidelityTarget:
    """`target` with an operator's limits instead: of the mean cosine, and of every text's cosine."""
    if mean is not None:
        target = replace(target, mean=mean)
    if minimum is not None:
        target = replace(target, minimum=minimum, low=minimum, low_share=0)
    return target


def fidelity_shortfalls(found: Fidelity, target: FidelityTarget) -> list[str]:
    """The missed limits as messages; empty if there are none. NaN misses a limit."""
    short = []
    if not found.mean >= target.mean:
        short.append(f"mean cosine {found.mean:.6f} is below {target.mean:g} (--min-cosine)")
    if not found.minimum >= target.minimum:
        short.append(
            f"the worst text's cosine {found.minimum:.6f} is below {target.minimum:g} "
            "(--min-worst-cosine)"
        )
    if not found.low_share <= target.low_share and target.low_share > 0:
        short.append(
            f"{found.low_share:.1%} of the texts have a cosine below {target.low:g}; at most "
            f"{target.low_share:.1%} may (--min-worst-cosine)"
        )
    if not found.centred >= target.centred:
        short.append(
            f"all texts lie close together, and apart from what they have in common the cosine is "
            f"{found.centred:.6f}, below {target.centred:g}"
        )
    return short
