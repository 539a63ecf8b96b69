"""Azure AI Search's custom Web API skill and vectorizer: records to contract, result to records.

The service sends only records; everything else comes in the query string of the configured URL. Does not
know HTTP headers, backends or how a body was decoded. Shapes:
https://learn.microsoft.com/azure/search/cognitive-search-custom-skill-web-api
https://learn.microsoft.com/azure/search/vector-search-vectorizer-custom-web-api
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import orjson

from shared.contracts import EmbedRequest, EmbedResult
from shared.dialects.body import NOT_EMPTY, Count, check_count, message_of, rename
from shared.errors import BlitzError, DeadlineExceeded, EmptyInput
from shared.settings import Settings
from shared.wire.codec import pack

STAND_IN = "."
"""Embedded, and discarded, in place of a text that a record does not have."""


class Record(msgspec.Struct, frozen=True, rename="camel"):
    """One document. data: names of a skill's inputs -> values; any other type fails this record only."""

    record_id: str
    data: Any = None


class RecordsBody(msgspec.Struct, frozen=True):
    """POST /azure-search.

    input, output: names of text and vector in the skill's definition; by default "text" and "vector",
    as vectorizers always have them. prompt_name takes precedence over input_type.
    """

    values: Annotated[list[Record], NOT_EMPTY]
    model: str | None = None
    input_type: Literal["query", "document", "classification", "clustering"] | None = None
    prompt_name: str | None = None
    dimensions: Count | None = None
    input: str | None = None
    output: str | None = None


def request_from(body: RecordsBody, *, model: str, settings: Settings) -> EmbedRequest:
    """The contract request, row i for record i. Raises InvalidInput and EmptyInput.

    A record without a text fails alone: a placeholder is embedded for it and discarded, so that one path
    serves any mix of valid and invalid records.
    """
    if not body.values:
        raise EmptyInput("values is empty: give at least one record", field="values")
    check_count(len(body.values), field="values", max_inputs=settings.max_inputs)
    texts = (_text_of(record, body) for record in body.values)
    return EmbedRequest(
        model=model,
        inputs=tuple(text if isinstance(text, str) and text else STAND_IN for text in texts),
        dimensions=body.dimensions,
        prompt_name=body.prompt_name,
        input_type=body.input_type,
    )


def format_result(result: EmbedResult, body: RecordsBody) -> bytes:
    """JSON {values: [{recordId, data: {vector}, errors, warnings}]}, one per record of the request."""
    return orjson.dumps(_answer(result, body), option=orjson.OPT_SERIALIZE_NUMPY)


def format_result_msgpack(result: EmbedResult, body: RecordsBody) -> bytes:
    """As the JSON, each vector a (D,) float32 array."""
    return pack(_answer(result, body))


def format_error(error: BlitzError) -> tuple[int, bytes]:
    """HTTP status and JSON {error: {code, message}}; indexers display the body without parsing it.

    They retry after 429, 502 and 503 only. A timeout, for instance while a model loads, is worth a
    retry, so it becomes 503.
    """
    status = 503 if isinstance(error, DeadlineExceeded) else error.status
    message = message_of(error, lambda field: rename(field, {"input": "values"}))
    return status, orjson.dumps({"error": {"code": error.code, "message": message}})


def _answer(result: EmbedResult, body: RecordsBody) -> dict[str, object]:
    vectors = np.ascontiguousarray(result.vectors)
    rows = enumerate(zip(body.values, vectors, strict=True))
    field = f"data.{body.input or 'text'}"
    failed = {index: why.replace(f"input[{index}]", field) for index, why in result.failed}
    values = []
    for index, (record, vector) in rows:
        wrong = _fault_of(record, body, field) or failed.get(index)
        cut = [_cut_at(result.max_tokens, field)] if index in result.cut else []
        values.append(
            {
                "recordId": record.record_id,
                "data": {} if wrong else {body.output or "vector": vector},
                "errors": _messages([wrong] if wrong else []),
                "warnings": _messages([] if wrong else [*cut, *result.warnings]),
            }
        )
    return {"values": values}


def _messages(messages: Sequence[str]) -> list[dict[str, str]] | None:
    return [{"message": message} for message in messages] or None


def _cut_at(max_tokens: int, field: str) -> str:
    return (
        f"{field} was truncated to the model's {max_tokens} tokens, and the vector does not cover the "
        "rest: split long texts into chunks"
    )


def _text_of(record: Record, body: RecordsBody) -> object:
    return record.data.get(body.input or "text") if isinstance(record.data, dict) else None


def _fault_of(record: Record, body: RecordsBody, field: str) -> str | None:
    """The error of a record without a text; None if it has one."""
    text = _text_of(record, body)
    if not isinstance(record.data, dict | None):
        return f"data is not an object: send one with the text as {field}"
    if text is None:
        return f"{field} is missing: send a text, or name the skill's input in the URL, as ?input=NAME"
    if isinstance(text, list):
        return f"{field} is a list: give the skill a context that ends in /*, for one text per record"
    if not isinstance(text, str):
        return f"{field} is not a text: send a string"
    return None if text else f"{field} is empty: send a text"
