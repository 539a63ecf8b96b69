"""Reranking: a query and documents in, one score per document out.

Does not know HTTP, models or batches.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec
import numpy as np

from shared.cards import Device
from shared.contracts.request import Request
from shared.contracts.result import DoubleMatrix, FloatMatrix, Result, Timings
from shared.contracts.texts import TruncationSide
from shared.errors import EmptyInput, InvalidInput


class RerankResult(Result, msgspec.Struct, frozen=True):
    """scores: (N,) float64, entry i belongs to document i. method: how the scores were computed.

    token_counts: tokens per pair, without padding; with "cosine" and "maxsim", tokens per document,
        where the first count includes the query's.
    logits: (N,) float32, the cross-encoder's outputs from which the scores are computed; None for
        others.
    cut: indices of the documents that were cut, or whose pair was; all indices if the query was cut.
    """

    arrays: ClassVar = {"scores": ("<f8", ()), "logits": ("<f4", ())}
    joined = ("scores", "logits")

    scores: DoubleMatrix
    token_counts: tuple[int, ...]
    model: str
    revision: str
    method: Literal["cross-encoder", "cosine", "maxsim"]
    timings: Timings = msgspec.field(default_factory=Timings)
    device: Device = "cpu"
    logits: FloatMatrix | None = None
    cut: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ranking(self) -> list[int]:
        """The documents' indices, best first; ties keep the order of the request.

        Sorted by logits where there are any, because the sigmoid of every logit from 37 on is exactly 1.
        """
        keys = self.scores if self.logits is None else self.logits
        order: list[int] = np.argsort(-keys, kind="stable").tolist()
        return order


class RerankRequest(Request[RerankResult], frozen=True):
    """Score each of `documents` against `query` with `model`. Blank documents get the lowest score.

    raw_scores: a cross-encoder's logits instead of their sigmoid.
    truncate: cut pairs longer than the model reads, longest text first; if False, they raise
        InputTooLong. truncation_side: the side that is cut off.
    max_document_tokens: documents are cut to this many tokens before they are paired; None: no limit.

    Raises EmptyInput without a query or documents, InvalidInput for max_document_tokens below 1.
    """

    operation, result, items, items_as_told = "rerank", RerankResult, "documents", "documents"

    model: str
    query: str
    documents: tuple[str, ...]
    raw_scores: bool = False
    truncate: bool = True
    truncation_side: TruncationSide = "right"
    max_document_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.query:
            raise EmptyInput("the query is empty: give a text", field="query")
        if not self.documents:
            raise EmptyInput("documents is empty: give at least one text", field="documents")
        if self.max_document_tokens is not None and self.max_document_tokens < 1:
            raise InvalidInput("max_document_tokens must be 1 or more", field="max_document_tokens")
