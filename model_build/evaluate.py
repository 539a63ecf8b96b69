"""Measures a built model through the serving code against its FP32 original.

It does not know how the model was built, whether it may be published, or where.
"""

from __future__ import annotations

import gc
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
from model_build.outputs import judge_outputs, largest_int8
from model_build.reference import Reference
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
    original: Reference,
    evaluations: Sequence[Evaluation] = (),
    gates: Gates | None = None,
) -> Quality:
    """Measure the model in `folder`.

    original: of an embedding model or cross-encoder it answers, and is released, before the built model
    runs. gates: the model's limits, which the result records; None: those of the target. evaluations:
    additional tasks to score.

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
                quality = measure_sparse(served, original.root, original.source, limits, load_s)
            case "multi-vector":
                quality = measure_late(served, original.root, original.source, limits, load_s)
            case "embedding":
                quality = _measure_vectors(served, original, limits, evaluations, load_s)
            case "cross-encoder":
                quality = _measure_scores(served, original, limits, evaluations, load_s)
    finally:
        served.close()
    if manifest.target == "gpu-fp16" and not torch.cuda.is_available():
        del served
        gc.collect()  # torch's modules refer to each other
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
    original: Reference,
    gates: Gates,
    evaluations: Sequence[Evaluation],
    load_s: float,
) -> Quality:
    source, int8_range = original.source, served.model.manifest.int8_range()
    check_length(served, original)
    usual = sample_texts()
    texts = [*usual, *_odd(served), long_text(_compared_words(source))]
    prompts = sorted(source.prompts.keys() & _INPUT_TYPES)
    score = partial(
        score_embedding,
        prompts=set(source.prompts),
        dimensions=source.matryoshka_dimensions,
        int8_range=int8_range,
    )
    # The long text apart, which others would be padded to.
    parts = [(texts[:-1], None), (texts[-1:], None), *((texts[:_PROMPTED], each) for each in prompts)]
    truth = np.concatenate([original.vectors(*each) for each in parts])
    reached = [original.figures(task, score) for task in evaluations]
    original.release()
    served.embed(texts[:_WARM_UP], None)
    started = time.perf_counter()
    vectors = served.embed(usual, None)
    elapsed_s = time.perf_counter() - started
    rest = [(texts[len(usual) :], None), *parts[2:]]
    vectors = np.concatenate([vectors, *(served.embed(*each) for each in rest)])
    found = compare_vectors(vectors, truth, gates.cosine)
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
        evaluations=_figures(evaluations, score, served.embed, reached),
    )


def _odd(served: Served) -> list[str]:
    """ODD_TEXTS that have tokens; without special tokens, white space has none."""
    return [text for texts in ODD_TEXTS.values() for text in texts if served.tokens(text)]


def _compared_words(source: SourceModel) -> int:
    return min(source.max_tokens + _BEYOND, _LONGEST_COMPARED)


def check_length(served: Served, original: Reference) -> None:
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
    original: Reference,
    gates: Gates,
    evaluations: Sequence[Evaluation],
    load_s: float,
) -> Quality:
    rankings = sample_rankings()
    pairs = [(ranking.query, document) for ranking in rankings for document in ranking.documents]
    odd = _odd_pairs(original.source)
    # The long pair apart, which others would be padded to.
    exact = np.concatenate([original.scores(each) for each in (pairs, odd[:-1], odd[-1:])])
    reached = [original.figures(task, score_cross_encoder) for task in evaluations]
    original.release()
    served.score(pairs[:_WARM_UP])
    started = time.perf_counter()
    logits = served.score(pairs)
    elapsed_s = time.perf_counter() - started
    counts = [len(ranking.documents) for ranking in rankings]
    agreements = rank_agreements(logits, exact[: len(pairs)], counts)
    logits = np.concatenate([logits, served.score(odd)])
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
        evaluations=_figures(evaluations, score_cross_encoder, served.score, reached),
    )


def _odd_pairs(source: SourceModel) -> list[tuple[str, str]]:
    """Pairs with odd texts as documents, one of each kind as a query, and last a truncated document."""
    odd = [text for texts in ODD_TEXTS.values() for text in texts if text.strip()]
    first = [texts[0] for texts in ODD_TEXTS.values() if texts[0].strip()]
    query, document = sample_rankings()[0].query, sample_rankings()[0].documents[-1]
    pairs = [(query, text) for text in odd] + [(text, document) for text in first]
    return [*pairs, (query, long_text(_compared_words(source)))]


def _figures(
    evaluations: Sequence[Evaluation],
    score: Callable[[Evaluation, Run], Mapping[str, float]],
    served: Run,
    reached: Sequence[Mapping[str, float]],
) -> dict[str, float]:
    """reached: by the original in each task."""
    return {
        f"{task.name} {figure}{whose}": round(value, 6)
        for task, of_original in zip(evaluations, reached, strict=True)
        for whose, figures in (("", score(task, served)), (" (original)", of_original))
        for figure, value in figures.items()
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
