"""Measures a built model through the serving code against its FP32 original, and applies quality gates.

It does not know how the model was made or where it will be published.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from scipy.stats import spearmanr

from model_build.originals import embedder, scorer
from model_build.samples import sample_rankings, sample_texts
from model_build.serving import Served, probabilities
from model_build.source import SourceModel
from model_build.tasks import Evaluation, score_cross_encoder, score_embedding
from shared.contracts import FloatMatrix
from shared.errors import InvalidArtefact
from shared.models.manifest import Manifest, Quality, Target

_WARM_UP = 8
_PROMPTED = 24
"""Texts compared per prompt that an `input_type` selects."""
_INPUT_TYPES = ("query", "document", "passage", "classification", "clustering")

Run = TypeVar("Run")


def evaluate(
    folder: Path,
    manifest: Manifest,
    root: Path,
    source: SourceModel,
    evaluations: Sequence[Evaluation] = (),
) -> Quality:
    """Measure the model in `folder`. root: the folder of the original, read as `source`.

    Raises InvalidArtefact if the model does not load or run, or returns NaN or infinite numbers, and
    Unavailable if the GPU is too small.
    """
    started = time.perf_counter()
    served = Served(folder, manifest)
    load_s = round(time.perf_counter() - started, 3)
    try:
        measure = _measure_vectors if manifest.task == "embedding" else _measure_scores
        quality = measure(served, root, source, evaluations, load_s)
    finally:
        served.close()
    if manifest.target == "gpu-fp16" and not torch.cuda.is_available():
        _try_half(folder, manifest)
    return quality


def _try_half(folder: Path, manifest: Manifest) -> None:
    """Raise InvalidArtefact if products overflow in FP16: without a GPU, only FP32 was measured."""
    try:
        served = Served(folder, manifest, half=True)
    except InvalidArtefact as error:
        if "not implemented for 'Half'" in str(error.__cause__):
            return  # cannot be checked without a GPU
        raise
    try:
        if manifest.task == "embedding":
            served.embed(sample_texts()[:_WARM_UP], None)
        else:
            ranking = sample_rankings()[0]
            served.score([(ranking.query, each) for each in ranking.documents[:_WARM_UP]])
    finally:
        served.close()


def shortfalls(
    quality: Quality, target: Target, min_cosine: float, min_rank_agreement: float
) -> list[str]:
    """The failed gates, in words; empty if the model may be published. NaN fails."""
    found = []
    if quality.cosine_mean is not None and not quality.cosine_mean >= min_cosine:
        found.append(f"mean cosine {quality.cosine_mean:.6f} is below --min-cosine {min_cosine:g}")
    agreement = quality.rank_agreement_mean
    if agreement is not None and math.isnan(agreement):
        found.append(
            "its ranking cannot be measured (--min-rank-agreement): it gives all documents of a sample "
            "query the same score, as a model does whose maximum length cuts the document off"
        )
    elif agreement is not None and not agreement >= min_rank_agreement:
        found.append(
            f"mean rank agreement {agreement:.4f} is below --min-rank-agreement {min_rank_agreement:g}"
        )
    limit = max_batch_difference(target)
    if not quality.batch_max_abs_diff < limit:
        found.append(
            f"results depend on the batch: they differ by {quality.batch_max_abs_diff:.2e}; the limit "
            f"is {limit:g}"
        )
    return found


def max_batch_difference(target: Target) -> float:
    """Limit for unit vectors, and for scores from 0 to 1.

    On a CPU the summation order of a row does not depend on the batch (FP32 torch: 1e-7). A GPU selects
    kernels by shape, and FP16 keeps 11 bits of every sum.
    """
    return 1e-2 if target == "gpu-fp16" and torch.cuda.is_available() else 1e-6


def _measure_vectors(
    served: Served, root: Path, source: SourceModel, evaluations: Sequence[Evaluation], load_s: float
) -> Quality:
    original = embedder(root, source)
    texts = sample_texts()
    served.embed(texts[:_WARM_UP], None)
    started = time.perf_counter()
    vectors = served.embed(texts, None)
    elapsed_s = time.perf_counter() - started
    cosines = (vectors * original(texts, None)).sum(axis=1)
    for prompt in source.prompts.keys() & _INPUT_TYPES:
        some = texts[:_PROMPTED]
        prompted = (served.embed(some, prompt) * original(some, prompt)).sum(axis=1)
        cosines = np.concatenate([cosines, prompted])
    return Quality(
        cosine_mean=float(cosines.mean()),
        cosine_p01=float(np.percentile(cosines, 1)),
        cosine_min=float(cosines.min()),
        batch_max_abs_diff=served.vector_difference(texts),
        load_s=load_s,
        inputs_per_s=round(len(texts) / elapsed_s, 1),
        evaluations=_figures(
            evaluations,
            partial(score_embedding, prompts=set(source.prompts)),
            served.embed,
            original,
        ),
    )


def _measure_scores(
    served: Served, root: Path, source: SourceModel, evaluations: Sequence[Evaluation], load_s: float
) -> Quality:
    original = scorer(root, source)
    rankings = sample_rankings()
    pairs = [(ranking.query, document) for ranking in rankings for document in ranking.documents]
    served.score(pairs[:_WARM_UP])
    started = time.perf_counter()
    logits = served.score(pairs)
    elapsed_s = time.perf_counter() - started
    exact = original(pairs)
    agreements = rank_agreements(logits, exact, [len(ranking.documents) for ranking in rankings])
    differences = np.abs(probabilities(logits) - probabilities(exact))
    return Quality(
        rank_agreement_mean=float(np.mean(agreements)),
        rank_agreement_min=float(np.min(agreements)),
        score_mean_abs_diff=float(differences.mean()),
        score_max_abs_diff=float(differences.max()),
        batch_max_abs_diff=served.score_difference(pairs),
        load_s=load_s,
        inputs_per_s=round(len(pairs) / elapsed_s, 1),
        evaluations=_figures(evaluations, score_cross_encoder, served.score, original),
    )


def _figures(
    evaluations: Sequence[Evaluation],
    score: Callable[[Evaluation, Run], Mapping[str, float]],
    served: Run,
    original: Run,
) -> dict[str, float]:
    return {
        f"{task.name} {figure}{whose}": round(value, 6)
        for task in evaluations
        for whose, run in (("", served), (" (original)", original))
        for figure, value in score(task, run).items()
    }


def rank_agreements(a: FloatMatrix, b: FloatMatrix, counts: Sequence[int]) -> list[float]:
    """Spearman's correlation of two (N, L) matrices over each query's documents, for each label.

    counts: documents of each query, in order. NaN if all logits of a query are equal.
    """
    agreements = []
    for rows in np.split(np.arange(len(a)), np.cumsum(counts)[:-1]):
        for one, other in zip(a[rows].T, b[rows].T, strict=True):
            flat = bool(np.ptp(one) == 0 or np.ptp(other) == 0)
            agreements.append(float("nan") if flat else float(spearmanr(one, other).statistic))
    return agreements
