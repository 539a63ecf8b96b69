"""Chooses by what number int8 answers of a model are scaled, for each length of its vectors.

It does not know dialects, and nothing of how well int8 keeps the order of similarities.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from model_build.reference import Reference
from model_build.samples import sample_texts
from shared.contracts import FloatMatrix
from shared.vectors import finish

_HEADROOM = 1.25
"""With it no vector of all-MiniLM-L6-v2 is clipped, of 12,227 other texts; without it 0.4 % are."""
_TEXTS = 120
_SHORTEST = 16
"""Dimensions. Below it, vectors use all of int8's range."""
_STEPS = 200
"""A range is a multiple of 1/200, so that the last bits of a processor's sums do not show."""


def calibrate_int8(originals: Collection[Reference]) -> dict[int, float]:
    """Dimensions -> the number that becomes 127, over the builder's texts; none for a cross-encoder.

    originals: of a model with routes each of them, one at a time in memory. Their vectors are compared
    with each other, so one range is for all.

    By the original, so that a model's builds for CPU and GPU have the same. The odd
    texts are not among them: 300 times the letter a would take a third of everyone's range, for one
    number that may as well be clipped. Raises InvalidInput and InvalidArtefact as they do.
    """
    if any(each.source.task != "embedding" for each in originals):
        return {}
    texts = sample_texts(_TEXTS)
    vectors = []
    for each in originals:
        vectors.append(each.vectors(texts, None))
        if len(originals) > 1:
            each.release()
    stated = [size for each in originals for size in each.source.matryoshka_dimensions]
    return ranges_of(np.concatenate(vectors), stated)


def ranges_of(vectors: FloatMatrix, stated: Sequence[int]) -> dict[int, float]:
    """vectors: (N, D) unit vectors. For D, its halves and the stated dimensions, the longest first.

    The shorter a unit vector, the larger its numbers, so ranges never shrink with the dimensions: one
    that stands for all lengths up to the next is at least as large as any of them needs.
    """
    ranges: dict[int, float] = {}
    largest = 0.0
    for size in sorted(_sizes(vectors.shape[1], stated), reverse=True):
        found = float(np.abs(finish(vectors, size, normalize=True)).max()) * _HEADROOM
        largest = max(largest, min(1.0, math.ceil(found * _STEPS) / _STEPS))
        ranges[size] = largest
    return ranges


def _sizes(width: int, stated: Sequence[int]) -> set[int]:
    halves = {width >> shift for shift in range(width.bit_length())}
    return {size for size in {*halves, *stated} if _SHORTEST <= size <= width} | {width}
