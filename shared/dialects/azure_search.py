"""Azure AI Search's custom Web API skill and vectorizer: records to contract, result to records.

Does not know HTTP headers, backends or how a body was decoded. The service sends only records: all
else is in the query string of the URL that it is given. Shapes:
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

_STAND_IN = "."


class Record(msgspec.Struct, frozen=True, rename="camel"):
    """One document's part of the request. data: names of a skill's inputs -> values.

    Whatever else comes as data fails this record, and no other.
    """

    record_id: str
    data: Any = None


class RecordsBody(msgspec.Struct, frozen=True):
    """POST /azure-search.

    input, output: what a skill's definition calls the text and the vector; by default "text" and
    "vector", as vectorizers always do. A prompt_name goes before an input_type.
    """

    values: Annotated[list[Record], NOT_EMPTY]
    model: str | None = None
    input_type: Literal["query", "document", "classification", "clustering"] | None = None
    prompt_name: str | None = None
    dimensions: Count | None = None
    input: str | None = None
    output: str | None = None


def request_from(body: RecordsBody, *, model: str, settings: Settings) -> EmbedRequest:
    """The contract that `body` asks for, row i for record i. Raises InvalidInput and EmptyInput.

    A record that has no text fails alone, in its place: something short is embedded for it and thrown
    away, so that one path serves the good, the bad, and those that have no good record at all.
    """
    if not body.values:
        raise EmptyInput("values is empty: give at least one record", field="values")
    check_count(len(body.values), field="values", max_inputs=settings.max_inputs)
    texts = (_text_of(record, body) for record in body.values)
    return EmbedRequest(
        model=model,
        inputs=tuple(text if isinstance(text, str) and text else _STAND_IN for text in texts),
        dimensions=body.dimensions,
        prompt_name=body.prompt_name,
        input_type=body.input_type,
    )


def format_result(result: EmbedResult, body: RecordsBody) -> bytes:
    """JSON {values: [{recordId, data: {vector}, errors, warnings}]}, a record for each that came."""
    return orjson.dumps(_answer(result, body), option=orjson.OPT_SERIALIZE_NUMPY)


def format_result_msgpack(result: EmbedResult, body: RecordsBody) -> bytes:
    """As the JSON, each vector a (D,) float32 array."""
    return pack(_answer(result, body))


def format_error(error: BlitzError) -> tuple[int, bytes]:
    """HTTP status and JSON {error: {code, message}}; indexers show the body, and read none of it.

    They repeat a request after 429, 502 and 503 alone. One that took too long, as while a model was
    loaded, may well succeed the next time, and so is a 503 here.
    """
    status = 503 if isinstance(error, DeadlineExceeded) else error.status
    message = message_of(error, lambda field: rename(field, {"input": "values"}))
    return status, orjson.dumps({"error": {"code": error.code, "message": message}})


def _answer(result: EmbedResult, body: RecordsBody) -> dict[str, object]:
    vectors = np.ascontiguousarray(result.vectors)
    rows = enumerate(zip(body.values, vectors, strict=True))
    field = f"data.{body.input or 'text'}"
    values = []
    for index, (record, vector) in rows:
        wrong = _fault_of(record, body, field)
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
        f"{field} was cut to the {max_tokens} tokens that the model reads: what comes after them is not "
        "in the vector; split long texts into chunks"
    )


def _text_of(record: Record, body: RecordsBody) -> object:
    return record.data.get(body.input or "text") if isinstance(record.data, dict) else None


def _fault_of(record: Record, body: RecordsBody, field: str) -> str | None:
    """What to tell of a record that has no text; None if it has one."""
    text = _text_of(record, body)
    if not isinstance(record.data, dict | None):
        return f"data is not an object: give one with the text in it, as {field}"
    if text is None:
        return f"{field} is missing: give a text, or name the skill's input in the URL, as ?input=NAME"
    if isinstance(text, list):
        return f"{field} is a list: give the skill a context that ends in /*, for one text a record"
    if not isinstance(text, str):
        return f"{field} is not a text: give a string"
    return None if text else f"{field} is empty: give a text"
