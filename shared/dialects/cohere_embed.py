"""Cohere's /v2/embed and /v1/embed: body to contract, result to body.

Does not know HTTP headers, backends or how a body was decoded. Errors are in cohere.py; number_types
defines the types. Shapes: https://docs.cohere.com/reference/embed
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

import msgspec
import orjson

from shared.contracts import EmbedRequest, EmbedResult, InputType
from shared.dialects.body import NOT_EMPTY, Count, Text, check_count
from shared.dialects.cohere import warnings_of
from shared.dialects.number_types import EmbeddingType, convert, encode_base64
from shared.errors import EmptyInput, InvalidInput
from shared.settings import Settings
from shared.wire.codec import pack

_INPUT_TYPES: dict[str, InputType] = {
    "search_query": "query",
    "search_document": "document",
    "classification": "classification",
    "clustering": "clustering",
}


class TextsBody(msgspec.Struct, frozen=True):
    """POST /v2/embed and /v1/embed. The last three fields are read only to refuse them."""

    texts: Annotated[list[Text], NOT_EMPTY] | None = None
    model: str | None = None
    input_type: Literal["search_query", "search_document", "classification", "clustering"] | None = None
    embedding_types: list[EmbeddingType] | None = None
    output_dimension: Count | None = None
    truncate: Literal["NONE", "START", "END"] | None = None
    images: list[Any] | None = None
    inputs: list[Any] | None = None
    max_tokens: int | None = None


def request_from(body: TextsBody, *, model: str, settings: Settings) -> EmbedRequest:
    """The contract request. Raises InvalidInput and EmptyInput naming the field."""
    if body.images:
        raise InvalidInput("images are not supported: send texts", field="images")
    if body.inputs:
        raise InvalidInput("mixed inputs are not supported: send texts", field="inputs")
    if body.max_tokens is not None:
        raise InvalidInput(
            "max_tokens is not supported: texts are truncated at the model's limit", field="max_tokens"
        )
    if not body.texts:
        raise EmptyInput("texts is empty: send at least one text", field="texts")
    check_count(len(body.texts), field="texts", max_inputs=settings.max_inputs)
    return EmbedRequest(
        model=model,
        inputs=tuple(body.texts),
        dimensions=body.output_dimension,
        truncate=body.truncate != "NONE",
        truncation_side="left" if body.truncate == "START" else "right",
        input_type=_INPUT_TYPES[body.input_type] if body.input_type else None,
    )


def format_result(result: EmbedResult, body: TextsBody) -> bytes:
    """JSON {id, embeddings: {type: one list per text}, texts, meta}; floats by default."""
    return orjson.dumps(_answer(result, body), option=orjson.OPT_SERIALIZE_NUMPY)


def format_result_msgpack(result: EmbedResult, body: TextsBody) -> bytes:
    """As the JSON, with each type as an array of one row per text; base64 stays a list."""
    return pack(_answer(result, body))


def format_v1(result: EmbedResult, body: TextsBody) -> bytes:
    """As v2's JSON, but without a named type `embeddings` is a list of floats."""
    return orjson.dumps(_answer_v1(result, body), option=orjson.OPT_SERIALIZE_NUMPY)


def format_v1_msgpack(result: EmbedResult, body: TextsBody) -> bytes:
    """As the JSON, with the embeddings as in v2's msgpack."""
    return pack(_answer_v1(result, body))


def _answer(result: EmbedResult, body: TextsBody) -> dict[str, object]:
    kinds = body.embedding_types or ["float"]
    embeddings = {kind: _embeddings(result, kind) for kind in kinds}
    return _as_answer("embeddings_by_type", embeddings, result, body, "2")


def _answer_v1(result: EmbedResult, body: TextsBody) -> dict[str, object]:
    if not body.embedding_types:
        floats = _embeddings(result, "float")
        return _as_answer("embeddings_floats", floats, result, body, "1")
    embeddings = {kind: _embeddings(result, kind) for kind in body.embedding_types}
    return _as_answer("embeddings_by_type", embeddings, result, body, "1")


def _as_answer(
    response_type: str, embeddings: object, result: EmbedResult, body: TextsBody, version: str
) -> dict[str, object]:
    tokens = {"input_tokens": result.total_tokens}
    meta: dict[str, object] = {
        "api_version": {"version": version},
        "billed_units": tokens,
        "tokens": tokens,
    }
    if warnings := warnings_of(result, "text"):
        meta["warnings"] = warnings
    return {
        "id": str(uuid.uuid4()),
        "response_type": response_type,
        "embeddings": embeddings,
        "texts": body.texts,
        "meta": meta,
    }


def _embeddings(result: EmbedResult, kind: EmbeddingType) -> object:
    if kind == "base64":
        return encode_base64(convert(result.vectors, "float"))
    return convert(result.vectors, kind, result.int8_range)
