"""Large requests as parts, and parts' results as one: pure, in order, nothing lost.

Does not know where parts run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

import numpy as np

from shared.contracts import (
    EmbedRequest,
    EmbedResult,
    PredictRequest,
    PredictResult,
    Request,
    RerankRequest,
    RerankResult,
    Timings,
    TokenizeRequest,
    TokenizeResult,
    texts_of,
)
from shared.errors import BlitzError

AnyRequest = TypeVar("AnyRequest", EmbedRequest, RerankRequest, PredictRequest, TokenizeRequest)
AnyResult = TypeVar("AnyResult", EmbedResult, RerankResult, PredictResult, TokenizeResult)

_ITEM = re.compile(r"(\w+)\[(\d+)\](.*)", re.DOTALL)


def split(request: AnyRequest, size: int) -> list[AnyRequest]:
    """Requests like `request` for `size` inputs or documents each, the last for what is left."""
    if len(texts_of(request)) <= size:
        return [request]
    if isinstance(request, RerankRequest):
        documents = request.documents
        return [
            replace(request, documents=documents[start : start + size])
            for start in range(0, len(documents), size)
        ]
    inputs = request.inputs
    return [
        replace(request, inputs=inputs[start : start + size]) for start in range(0, len(inputs), size)
    ]


def join(results: Sequence[AnyResult]) -> AnyResult:
    """One result for all parts, in their order; all are of one model and revision.

    timings: of the slowest part in each step, since parts run side by side. token_counts are of what
    was fed: with "cosine" scores the query is fed, and counted, once a part, in the part's first entry.
    """
    first = results[0]
    if len(results) == 1:
        return first
    counts = tuple(count for result in results for count in result.token_counts)
    timings = Timings(
        *(max(getattr(result.timings, field.name) for result in results) for field in fields(Timings))
    )
    if isinstance(first, TokenizeResult):
        spans = np.concatenate([result.spans for result in results])
        texts = tuple(text for result in results for text in result.texts)
        return replace(first, spans=spans, texts=texts, token_counts=counts, timings=timings)
    cut = _cut_in_whole(results)
    if isinstance(first, EmbedResult):
        vectors = np.concatenate([result.vectors for result in results])
        return replace(first, vectors=vectors, token_counts=counts, timings=timings, cut=cut)
    scores = np.concatenate([result.scores for result in results])
    if isinstance(first, RerankResult):
        logits = [result.logits for result in results if result.logits is not None]
        all_logits = np.concatenate(logits) if len(logits) == len(results) else None
        return replace(
            first, scores=scores, logits=all_logits, token_counts=counts, timings=timings, cut=cut
        )
    return replace(first, scores=scores, token_counts=counts, timings=timings, cut=cut)


def _cut_in_whole(results: Sequence[EmbedResult | RerankResult | PredictResult]) -> tuple[int, ...]:
    cut: list[int] = []
    start = 0
    for result in results:
        cut += (start + index for index in result.cut)
        start += len(result.token_counts)
    return tuple(cut)


def field_of(request: Request) -> str:
    """The name of what `request` has one row of the result for, as errors call it."""
    match request:
        case EmbedRequest():
            return "input"
        case RerankRequest():
            return "documents"
        case PredictRequest() | TokenizeRequest():
            return "inputs"


def in_whole(error: BlitzError, start: int) -> BlitzError:
    """The error of a part that begins at item `start` as the whole's: input[3] is renumbered."""
    item = _ITEM.fullmatch(error.field or "")
    if item is None:
        return error
    field = f"{item[1]}[{int(item[2]) + start}]{item[3]}"
    return type(error)(error.message, field=field, retry_after_s=error.retry_after_s)
