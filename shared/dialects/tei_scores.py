"""Text Embeddings Inference's /rerank and /predict: body to contract, result to body.

Does not know HTTP headers, backends or how a body was decoded. Errors are in tei's shape.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import orjson

from shared.contracts import PredictRequest, PredictResult, RerankRequest, RerankResult
from shared.dialects.body import NOT_EMPTY, Count, Text, check_count, read_documents
from shared.dialects.tei import Options
from shared.errors import EmptyInput, InvalidInput
from shared.settings import Settings
from shared.wire.codec import pack


class RerankBody(Options, frozen=True):
    """POST /rerank with `texts`. `top_n` is not TEI's, but litellm sends it."""

    query: Text
    texts: Annotated[list[str], NOT_EMPTY]
    model: str | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None
    top_n: Count | None = None


class PredictBody(Options, frozen=True):
    """POST /predict.

    inputs: "a" or ["a"] is a text, ["a", "b"] a pair; [["a"], ["b", "c"]] is a batch of a text and a
    pair, with a list of predictions for each.
    """

    inputs: Text | Annotated[list[Text | Annotated[list[Text], NOT_EMPTY]], NOT_EMPTY]
    model: str | None = None
    raw_scores: bool | None = None

    @property
    def is_batch(self) -> bool:
        """Whether `inputs` is a list of inputs, and not one text or pair."""
        return isinstance(self.inputs, list) and isinstance(self.inputs[0], list)


def rerank_request_from(body: RerankBody, *, model: str, settings: Settings) -> RerankRequest:
    """The contract request. Raises InvalidInput and EmptyInput."""
    return RerankRequest(
        model=model,
        query=body.query,
        documents=read_documents(body.texts, field="texts", max_inputs=settings.max_inputs),
        raw_scores=body.raw_scores is True,
        truncate=body.truncates,
        truncation_side=body.side,
    )


def predict_request_from(body: PredictBody, *, model: str, settings: Settings) -> PredictRequest:
    """The contract request. Raises InvalidInput and EmptyInput naming the field."""
    inputs: tuple[str | tuple[str, str], ...]
    if not body.inputs:
        raise EmptyInput("inputs is empty: send at least one text", field="inputs")
    if isinstance(body.inputs, str):
        inputs = (body.inputs,)
    elif body.is_batch:
        check_count(len(body.inputs), field="inputs", max_inputs=settings.max_inputs)
        inputs = tuple(_text_or_pair(item, f"inputs[{i}]") for i, item in enumerate(body.inputs))
    else:
        inputs = (_text_or_pair(body.inputs, "inputs"),)
    return PredictRequest(
        model=model,
        inputs=inputs,
        raw_scores=body.raw_scores is True,
        truncate=body.truncates,
        truncation_side=body.side,
    )


def format_ranks(result: RerankResult, body: RerankBody) -> bytes:
    """JSON [{index, score, text?}], best first. No extra fields: Elasticsearch refuses them."""
    ranks = []
    for index in result.ranking[: body.top_n]:
        rank: dict[str, object] = {"index": index, "score": result.scores[index]}
        if body.return_text:
            rank["text"] = body.texts[index]
        ranks.append(rank)
    return orjson.dumps(ranks, option=orjson.OPT_SERIALIZE_NUMPY)


def format_ranks_msgpack(result: RerankResult, body: RerankBody) -> bytes:
    """The JSON's columns: {index: (M,) int32, score: (M,) float64, text?: [str]}, best first."""
    order = result.ranking[: body.top_n]
    ranks: dict[str, object] = {"index": np.array(order, np.int32), "score": result.scores[order]}
    if body.return_text:
        ranks["text"] = [body.texts[index] for index in order]
    return pack(ranks)


def format_predictions(result: PredictResult, body: PredictBody) -> bytes:
    """JSON [{score, label}], best first; a list of such lists for a batch."""
    predictions = [
        [
            {"score": row[label], "label": result.labels[label]}
            for label in np.argsort(-row, kind="stable")
        ]
        for row in result.scores
    ]
    answer = predictions if body.is_batch else predictions[0]
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def format_predictions_msgpack(result: PredictResult, body: PredictBody) -> bytes:
    """{scores: (N, L) float64, labels: [str]}, column j being labels[j]."""
    return pack({"scores": result.scores, "labels": list(result.labels)})


def _text_or_pair(value: str | list[str] | list[str | list[str]], field: str) -> str | tuple[str, str]:
    texts = [value] if isinstance(value, str) else [text for text in value if isinstance(text, str)]
    if isinstance(value, str) or len(texts) < len(value):
        raise InvalidInput('inputs mixes texts and lists: send [["a"], ["b", "c"]]', field=field)
    if not texts:
        raise EmptyInput(f"{field} is empty: send a text or a pair", field=field)
    if len(texts) > 2:
        raise InvalidInput(
            f"{field} has {len(texts)} texts in one list, which may be a text or a pair: "
            'send several as [["a"], ["b"]]',
            field=field,
        )
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])
