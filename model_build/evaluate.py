"""Measures a built model through the serving code against its FP32 original.

It does not know how the model was built, whether it may be published, or where.
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

from model_build.evaluate_tokens import measure_late, measure_sparse
from model_build.fidelity import compare_vectors, told
from model_build.gates import Gates, gates_of
from model_build.odd_texts import ODD_TEXTS
from model_build.originals import Original, embedder, scorer
from model_build.outputs import judge_outputs, largest_int8
from model_build.samples import long_text, sample_rankings, sample_texts
from model_build.serving import Served, probabilities
from model_build.source import SourceModel
from model_build.tasks import Evaluation, score_cross_encoder, score_embedding
from shared.contracts import FloatMatrix
from shared.errors import InvalidArtefact
from shared.models.manifest import Manifest, Quality

_WARM_UP = 8
_PROMPTED = 24
"""Texts compared for each prompt that an `input_type` can select."""
_BEYOND = 40
"""Extra words of a text that is longer than the model reads. A word has one or more tokens."""
_LONGEST_COMPARED = 1_024
"""Words of the longest text whose vectors are compared: attention cost is quadratic."""
_LONGEST_COUNTED = 150_000
"""Words of the longest text whose tokens are counted."""
_INPUT_TYPES = ("query", "document", "passage", "classification", "clustering")

Run = TypeVar("Run")


def evaluate(
    folder: Path,
    manifest: Manifest,
    root: Path,
    source: SourceModel,
    evaluations: Sequence[Evaluation] = (),
    gates: Gates | None = None,
) -> Quality:
    """Measure the model in `folder`.

    root: the original's folder, which was read as `source`. gates: the model's limits, which the result
    records; None: those of the target. evaluations: additional tasks to score.

    Raises InvalidArtefact if the model does not load or run, returns NaN or infinite numbers, or reads
    another number of tokens than the original, and Unavailable if the GPU is too small.
    """
    started = time.perf_counter()
    served = Served(folder, manifest)
    load_s = round(time.perf_counter() - started, 3)
    try:
        limits = gates or gates_of(manifest.target, manifest.task)
        match manifest.task:
            case "sparse":
                quality = measure_sparse(served, root, source, limits, load_s)
            case "multi-vector":
                quality = measure_late(served, root, source, limits, load_s)
            case "embedding":
                quality = _measure_vectors(served, root, source, limits, evaluations, load_s)
            case "cross-encoder":
                quality = _measure_scores(served, root, source, limits, evaluations, load_s)
    finally:
        served.close()
    if manifest.target == "gpu-fp16" and not torch.cuda.is_available():
        _try_half(folder, manifest)
    return quality


def _try_half(folder: Path, manifest: Manifest) -> None:
    """Raise InvalidArtefact if the model overflows in FP16: without a GPU only FP32 was measured."""
    try:
        served = Served(folder, manifest, half=True)
    except InvalidArtefact as error:
        if "not implemented for 'Half'" in str(error.__cause__):
            return  # cannot be checked without a GPU
        raise
    try:
        if manifest.task in ("sparse", "multi-vector"):
            served.encode(sample_texts()[:_WARM_UP], "document")
        elif manifest.task == "embedding":
            served.embed(sample_texts()[:_WARM_UP], None)
        else:
            ranking = sample_rankings()[0]
            served.score([(ranking.query, each) for each in ranking.documents[:_WARM_UP]])
    finally:
        served.close()


def _measure_vectors(
    served: Served,
    root: Path,
    source: SourceModel,
    gates: Gates,
    evaluations: Sequence[Evaluation],
    load_s: float,
) -> Quality:
    original = embedder(root, source)
    check_length(served, original)
    usual = sample_texts()
    texts = [*usual, *_odd(served), long_text(_compared_words(source))]
    served.embed(texts[:_WARM_UP], None)
    started = time.perf_counter()
    vectors = served.embed(usual, None)
    elapsed_s = time.perf_counter() - started
    vectors = np.concatenate([vectors, served.embed(texts[len(usual) :], None)])
    truth = original(texts, None)
    for prompt in sorted(source.prompts.keys() & _INPUT_TYPES):
        some = texts[:_PROMPTED]
        vectors = np.concatenate([vectors, served.embed(some, prompt)])
        truth = np.concatenate([truth, original(some, prompt)])
    found = compare_vectors(vectors, truth, gates.cosine)
    int8_range = served.model.manifest.int8_range()
    return Quality(
        **told(found, gates.cosine),
        outputs={
            form: None if math.isnan(value) else value
            for form, value in judge_outputs(
                vectors[: len(usual)], truth[: len(usual)], source.matryoshka_dimensions, int8_range
            ).items()
        },
        int8_largest=largest_int8(vectors, int8_range),
        batch_max_abs_diff=served.vector_difference(texts),
        load_s=load_s,
        inputs_per_s=round(len(usual) / elapsed_s, 1),
        evaluations=_figures(
            evaluations,
            partial(
                score_embedding,
                prompts=set(source.prompts),
                dimensions=source.matryoshka_dimensions,
                int8_range=int8_range,
            ),
            served.embed,
            original,
        ),
    )


def _odd(served: Served) -> list[str]:
    """ODD_TEXTS that have tokens; without special tokens, white space has none."""
    return [text for texts in ODD_TEXTS.values() for text in texts if served.tokens(text)]


def _compared_words(source: SourceModel) -> int:
    return min(source.max_tokens + _BEYOND, _LONGEST_COMPARED)


def check_length(served: Served, original: Original) -> None:
    """Raise InvalidArtefact unless both read the same number of tokens of a long text."""
    manifest = served.model.manifest
    words = manifest.max_tokens + _BEYOND
    # With static embeddings sentence-transformers reads the whole text, and the service a part.
    if words > _LONGEST_COUNTED or manifest.target == "cpu-static":
        return
    text = long_text(words)
    ours, theirs = served.tokens(text), original.tokens(text)
    if ours != theirs:
        raise InvalidArtefact(
            f"of a long text the built model reads {ours} tokens, and sentence-transformers {theirs}: "
            "set max_seq_length in sentence_bert_config.json"
        )


def _measure_scores(
    served: Served,
    root: Path,
    source: SourceModel,
    gates: Gates,
    evaluations: Sequence[Evaluation],
    load_s: float,
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
    odd = _odd_pairs(source)
    logits = np.concatenate([logits, served.score(odd)])
    exact = np.concatenate([exact, original(odd)])
    differences = np.abs(probabilities(logits) - probabilities(exact))
    limits = {"rank_agreement_mean": gates.rank_agreement, "score_max_abs_diff": gates.score_difference}
    return Quality(
        rank_agreement_mean=float(np.mean(agreements)),
        rank_agreement_min=float(np.min(agreements)),
        score_mean_abs_diff=float(differences.mean()),
        score_max_abs_diff=float(differences.max()),
        limits={name: value for name, value in limits.items() if math.isfinite(value)},
        batch_max_abs_diff=served.score_difference(pairs),
        load_s=load_s,
        inputs_per_s=round(len(pairs) / elapsed_s, 1),
        evaluations=_figures(evaluations, score_cross_encoder, served.score, original),
    )


def _odd_pairs(source: SourceModel) -> list[tuple[str, str]]:
    """Pairs with odd texts as documents, one of each kind as a query, and a truncated document."""
    odd = [text for texts in ODD_TEXTS.values() for text in texts if text.strip()]
    first = [texts[0] for texts in ODD_TEXTS.values() if texts[0].strip()]
    query, document = sample_rankings()[0].query, sample_rankings()[0].documents[-1]
    documents = [*odd, long_text(_compared_words(source))]
    return [(query, text) for text in documents] + [(text, document) for text in first]


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
    """Spearman's correlation of two (N, L) float32 matrices, per query and label.

    counts: number of documents of each query, in order. NaN if all logits of a query are equal.
    """
    agreements = []
    for rows in np.split(np.arange(len(a)), np.cumsum(counts)[:-1]):
        for one, other in zip(a[rows].T, b[rows].T, strict=True):
            flat = bool(np.ptp(one) == 0 or np.ptp(other) == 0)
            agreements.append(float("nan") if flat else float(spearmanr(one, other).statistic))
    return agreements
