"""Limits that a built model must reach to be published, per target, and messages for missed ones.

It does not know how the figures are measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from model_build.fidelity import (
    INT8_AIM,
    TARGETS,
    TOKEN_TARGETS,
    Fidelity,
    FidelityTarget,
    fidelity_shortfalls,
    relaxed,
)
from shared.cards import Task
from shared.models.manifest import Quality, Target

# Least rank agreement, and largest difference of a score (scores are from 0 to 1).
# INT8, measured on a 6-layer BERT trained on TREC QA, with one value channel per layer scaled up, which
# leaves FP32 results unchanged. As trained: rank agreement 0.993, MAP lower by 0.005; channel x 64:
# 0.982 and 0.006; x 128: 0.945; x 256: 0.65 and 0.036; x 10,000: -0.03 and 0.28.
_SCORES: Mapping[Target, tuple[float, float]] = {
    "cpu-int8": (0.95, math.inf),
    "cpu-int8-static": (0.95, math.inf),
    "cpu-bf16": (0.99, 2e-2),
    "cpu-fp32": (0.999, 1e-3),
    "cpu-static": (0.999, 1e-3),
    "gpu-fp16": (0.99, 2e-2),
}
_AIMED_AGREEMENT = 0.99


@dataclass(frozen=True, slots=True)
class Gates:
    """Limits for a model.

    cosine: of all but cross-encoders. rank_agreement: the least mean rank agreement of all but embedding
    models.
    score_difference: the largest difference of its scores, which are from 0 to 1.
    """

    cosine: FidelityTarget
    rank_agreement: float
    score_difference: float


def gates_of(
    target: Target,
    task: Task = "embedding",
    *,
    mean: float | None = None,
    minimum: float | None = None,
    rank_agreement: float | None = None,
) -> Gates:
    """The gates of `target` for a model of `task`, with the given limits instead of its own.

    mean, minimum: of the cosines. A given rank_agreement also lifts the limit of the score difference.
    """
    agreement, difference = _SCORES[target]
    if rank_agreement is not None:
        agreement, difference = rank_agreement, math.inf
    cosines = (TOKEN_TARGETS if task in ("sparse", "multi-vector") else TARGETS)[target]
    return Gates(relaxed(cosines, mean, minimum), agreement, difference)


def int8_aims(
    *, mean: float | None = None, minimum: float | None = None, rank_agreement: float | None = None
) -> Gates:
    """What an INT8 model should reach, or else has layers kept in FP32. Arguments as in `gates_of`."""
    agreement = _AIMED_AGREEMENT if rank_agreement is None else rank_agreement
    return Gates(relaxed(INT8_AIM, mean, minimum), agreement, math.inf)


def shortfalls(quality: Quality, target: Target, gates: Gates) -> list[str]:
    """The failed gates as messages; empty if the model may be published. NaN fails a gate."""
    found = distances(quality, gates)
    limit = max_batch_difference(target)
    if not quality.batch_max_abs_diff < limit:
        found.append(
            f"results depend on the batch: they differ by {quality.batch_max_abs_diff:.2e}; the limit "
            f"is {limit:g}"
        )
    return found


def distances(quality: Quality, gates: Gates) -> list[str]:
    """The missed limits of how close the results are to the original's, as messages."""
    found = []
    if quality.cosine_mean is not None:
        found += fidelity_shortfalls(_fidelity_of(quality), gates.cosine)
    agreement = quality.rank_agreement_mean
    if agreement is not None and math.isnan(agreement):
        found.append(
            "its ranking cannot be measured (--min-rank-agreement): it gives all documents of a sample "
            "query the same score, as a model does whose maximum length cuts the document off"
        )
    elif agreement is not None and not agreement >= gates.rank_agreement:
        found.append(
            f"mean rank agreement {agreement:.4f} is below {gates.rank_agreement:g} "
            "(--min-rank-agreement)"
        )
    difference = quality.score_max_abs_diff
    if difference is not None and not difference <= gates.score_difference:
        found.append(
            f"a score differs by {difference:.2e} from the original's; the limit is "
            f"{gates.score_difference:g} (--min-rank-agreement)"
        )
    return found


def _fidelity_of(quality: Quality) -> Fidelity:
    nan = float("nan")
    return Fidelity(
        mean=nan if quality.cosine_mean is None else quality.cosine_mean,
        p01=nan if quality.cosine_p01 is None else quality.cosine_p01,
        minimum=nan if quality.cosine_min is None else quality.cosine_min,
        low_share=nan if quality.cosine_low_share is None else quality.cosine_low_share,
        centred=nan if quality.cosine_centred is None else quality.cosine_centred,
        worst=0,
    )


def max_batch_difference(target: Target) -> float:
    """Largest allowed absolute difference between batches, of unit vectors and of scores from 0 to 1.

    On a CPU the summation order of a row does not depend on the batch (FP32 torch: 1e-7). A GPU selects
    kernels by shape, and FP16 has 11 significant bits.
    """
    return 1e-2 if target == "gpu-fp16" and torch.cuda.is_available() else 1e-6
