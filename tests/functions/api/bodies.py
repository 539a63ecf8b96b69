"""A body that is answered, for every operation that is served."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from shared.contracts import AnyRequest, EmbedSparseRequest, EmbedTokensRequest, PredictRequest
from shared.dialects.operations import Operation, request_type_of
from shared.errors import InvalidInput
from shared.settings import Settings

VALID: tuple[dict[str, Any], ...] = (
    {"input": "a"},
    {"inputs": "a"},
    {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
    {"texts": ["a"]},
    {"prompt": "a"},
    {"ids": [97]},
    {"query": "a", "texts": ["b"]},
    {"query": "a", "documents": ["b"], "property": "c"},
    {"query": "a", "documents": ["b"]},
    {"values": [{"recordId": "0", "data": {"text": "a"}}]},
)


_MODELS: dict[type[AnyRequest], str] = {
    PredictRequest: "p",
    EmbedSparseRequest: "s",
    EmbedTokensRequest: "l",
}


def valid_body(operation: Operation) -> dict[str, Any]:
    """One that the operation answers."""
    for body in VALID:
        if body.keys() - {field.encode_name for field in msgspec.structs.fields(operation.body)}:
            continue  # fields of other dialects are refused
        try:
            read = msgspec.convert(body, operation.body)
            operation.request_from(read, model="m", settings=Settings())
        except (msgspec.ValidationError, InvalidInput):
            continue
        return {**body, "model": _MODELS.get(request_type_of(operation), "m")}
    raise AssertionError(f"give VALID a body for: {operation.summary}")


GOOD = "w1 w2"
EMBEDDERS = ("embedder",)
SCORERS = ("scorer",)
SPARSE, LATE = ("sparse",), ("late",)
NUMERIC: dict[str, tuple[tuple[str, ...], Any, str]] = {
    # body of "%", where the text goes that has no numbers, and what the error calls it.
    "/v1/embeddings": (EMBEDDERS, {"input": [GOOD, "%"]}, "input[1]"),
    "/embed": (EMBEDDERS, {"inputs": [GOOD, "%"]}, "inputs[1]"),
    "/similarity": (
        EMBEDDERS,
        {"inputs": {"source_sentence": GOOD, "sentences": [GOOD, "%"]}},
        "inputs.sentences[1]",
    ),
    "/": (EMBEDDERS, {"inputs": "%"}, "inputs[0]"),
    "/v2/embed": (EMBEDDERS, {"texts": [GOOD, "%"], "embedding_types": ["int8"]}, "texts[1]"),
    "/v1/embed": (EMBEDDERS, {"texts": [GOOD, "%"]}, "texts[1]"),
    "/api/embed": (EMBEDDERS, {"input": [GOOD, "%"]}, "input[1]"),
    "/api/embeddings": (EMBEDDERS, {"prompt": "%"}, "prompt"),
    "/infinity/rerank": (SCORERS, {"query": GOOD, "documents": [GOOD, "%"]}, "documents[1]"),
    "/azure-search": (
        EMBEDDERS,
        {"values": [{"recordId": "a", "data": {"text": "%"}}]},
        "values[0]",
    ),
    "/embed_sparse": (SPARSE, {"inputs": [GOOD, "%"]}, "inputs[1]"),
    "/embed_all": (LATE, {"inputs": [GOOD, "%"]}, "inputs[1]"),
    "/predict": (SCORERS, {"inputs": [[GOOD], ["%"]]}, "inputs[1]"),
    "/rerank": (EMBEDDERS + SCORERS, {"query": GOOD, "texts": [GOOD, "%"]}, "texts[1]"),
    "/v1/rerank": (EMBEDDERS + SCORERS, {"query": GOOD, "documents": [GOOD, "%"]}, "documents[1]"),
    "/v2/rerank": (
        EMBEDDERS + SCORERS + LATE,
        {"query": GOOD, "documents": [GOOD, "%"]},
        "documents[1]",
    ),
}
ASKED = [(path, model) for path, (models, _, _) in NUMERIC.items() for model in models]


def filled(body: Any, text: str) -> Any:
    return json.loads(json.dumps(body).replace("%", text))
