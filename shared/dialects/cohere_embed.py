"""Cohere's /v2/embed: body to contract, result to body.

Does not know HTTP headers, backends or how a body was decoded. Errors are in cohere's shape.
Shape: https://docs.cohere.com/reference/embed

Cohere does not say how it scales what is not a float. Here, of a unit vector x of D dimensions:
    float    x
    base64   the bytes of x, little-endian float32
    int8     round(127 x), -127 to 127: the same scale for every text and model, so that dot products
             keep their order, and int8 / 127 is x again, to 1/254 in each dimension
    uint8    int8 + 128, 1 to 255: no direction of its own, subtract 128 before comparing
    ubinary  one bit a dimension, 1 where x > 0; eight to a byte, the first in the highest bit; zeros
             fill the last byte: ceil(D / 8) values, 0 to 255
    binary   ubinary - 128, -128 to 127
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from shared.contracts import EmbedRequest, EmbedResult, FloatMatrix, InputType
from shared.dialects.body import NOT_EMPTY, Count, Text, check_count
from shared.errors import EmptyInput, InvalidInput
from shared.settings import Settings
from shared.wire import pack

EmbeddingType: TypeAlias = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]

_INPUT_TYPES: dict[str, InputType] = {
    "search_query": "query",
    "search_document": "document",
    "classification": "classification",
    "clustering": "clustering",
}


class TextsBody(msgspec.Struct, frozen=True):
    """POST /v2/embed. Unknown fields are ignored; the last three are known to be refused."""

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
    """The contract that `body` asks for. Raises InvalidInput and EmptyInput naming the field."""
    if body.images:
        raise InvalidInput("images are not embedded here: send texts", field="images")
    if body.inputs:
        raise InvalidInput("inputs of several kinds are not embedded here: send texts", field="inputs")
    if body.max_tokens is not None:
        raise InvalidInput(
            "max_tokens is not read: texts are cut where the model's own limit is", field="max_tokens"
        )
    if not body.texts:
        raise EmptyInput("texts is empty: give at least one text", field="texts")
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
    """JSON {id, embeddings: {type: a list for each text}, texts, meta}; floats if no type is named."""
    return orjson.dumps(_answer(result, body), option=orjson.OPT_SERIALIZE_NUMPY)


def format_result_msgpack(result: EmbedResult, body: TextsBody) -> bytes:
    """As the JSON, each of the embeddings an array with a row for each text, base64 still a list."""
    return pack(_answer(result, body))


def _answer(result: EmbedResult, body: TextsBody) -> dict[str, object]:
    vectors = np.ascontiguousarray(result.vectors, dtype="<f4")
    kinds = body.embedding_types or ["float"]
    tokens = {"input_tokens": result.total_tokens}
    return {
        "id": str(uuid.uuid4()),
        "response_type": "embeddings_by_type",
        "embeddings": {kind: _ENCODE[kind](vectors) for kind in kinds},
        "texts": body.texts,
        "meta": {"api_version": {"version": "2"}, "billed_units": tokens, "tokens": tokens},
    }


def _base64(vectors: FloatMatrix) -> list[str]:
    return [base64.b64encode(row.data).decode("ascii") for row in vectors]


def _int8(vectors: FloatMatrix) -> NDArray[np.int8]:
    scaled: NDArray[np.float32] = np.rint(vectors * np.float32(127))
    return scaled.astype(np.int8)


def _ubinary(vectors: FloatMatrix) -> NDArray[np.uint8]:
    return np.packbits(vectors > 0, axis=1)


def _less_128(values: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Turning the highest bit of a byte is what moves it by 128 between the two ranges."""
    return (values ^ np.uint8(0x80)).view(np.int8)


_ENCODE: dict[EmbeddingType, Callable[[FloatMatrix], object]] = {
    "float": lambda vectors: vectors,
    "base64": _base64,
    "int8": _int8,
    "uint8": lambda vectors: _int8(vectors).view(np.uint8) ^ np.uint8(0x80),
    "binary": lambda vectors: _less_128(_ubinary(vectors)),
    "ubinary": _ubinary,
}
