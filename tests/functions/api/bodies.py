"""A body that is answered, for every operation that is served."""

from __future__ import annotations

from typing import Any

import msgspec

from shared.contracts import PredictRequest
from shared.dialects.operations import OPERATIONS, Operation, asks_for
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
        return {**body, "model": "p" if asks_for(operation) is PredictRequest else "m"}
    raise AssertionError(f"give VALID a body for: {operation.summary}")


SERVED = [each for each in OPERATIONS if not each.refusal]
