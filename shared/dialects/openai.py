"""OpenAI's embeddings, models and errors: body to contract, result to body.

Does not know HTTP headers, backends or how a body was decoded. Shapes:
https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import orjson

from shared.contracts import EmbedRequest, EmbedResult, FloatMatrix, ModelCard
from shared.dialects.body import Count, Inputs, message_of, read_inputs
from shared.errors import BlitzError, InvalidInput
from shared.settings import Settings
from shared.wire import pack

OWNER = "blitz-embedding"


class EmbeddingsBody(msgspec.Struct, frozen=True):
    """POST /v1/embeddings. `truncate` and `prompt_name` are ours; unknown fields are ignored."""

    input: Inputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None
    truncate: bool | None = None
    prompt_name: str | None = None


def request_from(body: EmbeddingsBody, *, model: str, settings: Settings) -> EmbedRequest:
    """The contract that `body` asks for. Raises InvalidInput and EmptyInput naming the field."""
    inputs = read_inputs(body.input, field="input", max_inputs=settings.max_inputs)
    if not settings.allow_token_ids and any(not isinstance(item, str) for item in inputs):
        # LangChain sends tiktoken ids by default: in this model's vocabulary they are other words,
        # and the vectors would be wrong without anyone noticing.
        raise InvalidInput(
            "token ids are not accepted, because ids of another model's vocabulary give wrong vectors: "
            "send texts (in LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
            field="input",
        )
    return EmbedRequest(
        model=model,
        inputs=inputs,
        dimensions=body.dimensions,
        truncate=body.truncate is not False,
        prompt_name=body.prompt_name,
    )


def format_result(result: EmbedResult, body: EmbeddingsBody) -> bytes:
    """JSON. Floats are written by orjson from the array; base64 holds little-endian float32."""
    vectors = np.ascontiguousarray(result.vectors, dtype="<f4")
    encode = _base64 if body.encoding_format == "base64" else _identity
    data = [
        {"object": "embedding", "index": index, "embedding": encode(row)}
        for index, row in enumerate(vectors)
    ]
    return orjson.dumps(_list_of(data, result), option=orjson.OPT_SERIALIZE_NUMPY)


def format_result_msgpack(result: EmbedResult, body: EmbeddingsBody) -> bytes:
    """As the JSON, but `data` is the (N, D) float32 array itself."""
    return pack(_list_of(result.vectors, result))


def format_models(cards: Sequence[ModelCard]) -> bytes:
    return orjson.dumps({"object": "list", "data": [_model(card) for card in cards]})


def format_model(card: ModelCard) -> bytes:
    return orjson.dumps(_model(card))


def format_error(error: BlitzError) -> tuple[int, bytes]:
    """HTTP status and JSON body. The message names the field too: it is all that the SDK prints."""
    if error.status == 429:
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
    message = message_of(error, lambda field: field)
    body = {"message": message, "type": kind, "param": error.field, "code": error.code}
    return error.status, orjson.dumps({"error": body})


def _list_of(data: object, result: EmbedResult) -> dict[str, object]:
    usage = {"prompt_tokens": result.total_tokens, "total_tokens": result.total_tokens}
    return {"object": "list", "data": data, "model": result.model, "usage": usage}


def _base64(row: FloatMatrix) -> object:
    return base64.b64encode(row.data).decode("ascii")


def _identity(row: FloatMatrix) -> object:
    return row


def _model(card: ModelCard) -> dict[str, object]:
    return {"id": card.name, "object": "model", "created": card.created, "owned_by": OWNER}
