"""Text Embeddings Inference's /embed, /info and errors: body to contract, result to body.

Does not know HTTP headers, backends or how a body was decoded. Shapes:
https://huggingface.github.io/text-embeddings-inference
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
import numpy as np
import orjson

from shared.contracts import EmbedRequest, EmbedResult, ModelCard
from shared.dialects.openai import Inputs, read_inputs  # TEI's inputs have OpenAI's shapes
from shared.errors import (
    BackendFailed,
    BlitzError,
    EmptyInput,
    InputTooLong,
    InvalidInput,
    Overloaded,
    Unavailable,
)
from shared.settings import Settings
from shared.wire import pack

_STATUSES: tuple[tuple[type[BlitzError], int, str], ...] = (
    (EmptyInput, 400, "Empty"),
    (InputTooLong, 422, "Validation"),
    (InvalidInput, 422, "Validation"),
    (Overloaded, 429, "Overloaded"),
    (Unavailable, 503, "Unhealthy"),
    (BackendFailed, 424, "Backend"),
)
"""What TEI answers, first match; other errors keep their own status."""

_DTYPES = {"cpu-int8": "int8", "cpu-fp32": "float32", "gpu-fp16": "float16"}


class Body(msgspec.Struct, frozen=True):
    """POST /embed. `model` is ours, for a server of many models; unknown fields are ignored."""

    inputs: Inputs
    model: str | None = None
    truncate: bool | None = None
    truncation_direction: Literal["Right", "Left", "right", "left"] | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None


def request_from(body: Body, *, model: str, settings: Settings) -> EmbedRequest:
    """The contract that `body` asks for. Raises InvalidInput and EmptyInput naming the field."""
    return EmbedRequest(
        model=model,
        inputs=read_inputs(body.inputs, field="inputs", max_inputs=settings.max_inputs),
        dimensions=body.dimensions,
        normalize=body.normalize is not False,
        truncate=body.truncate is not False,
        truncation_side="left" if body.truncation_direction in ("Left", "left") else "right",
        prompt_name=body.prompt_name,
    )


def format_result(result: EmbedResult, body: Body) -> bytes:
    """JSON [[float]], two-dimensional for a single text too."""
    vectors = np.ascontiguousarray(result.vectors)
    return orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY)


def format_result_msgpack(result: EmbedResult) -> bytes:
    """The (N, D) float32 array."""
    return pack(result.vectors)


def format_info(card: ModelCard, settings: Settings, version: str) -> bytes:
    """GET /info of one model."""
    info = {
        "model_id": card.name,
        "model_sha": card.revision,
        "model_dtype": _DTYPES.get(card.target, card.target),
        "model_type": {"embedding": {"pooling": card.pooling}},
        # What is bounded here is tokens; a request holds at least one.
        "max_concurrent_requests": settings.queue_tokens,
        "max_input_length": card.max_tokens,
        "max_batch_tokens": settings.batch_tokens,
        "max_client_batch_size": settings.max_inputs,
        "auto_truncate": True,
        "version": version,
    }
    return orjson.dumps(info)


def format_error(error: BlitzError) -> tuple[int, bytes]:
    """HTTP status and JSON body. The shape has no place for the field: the message names it."""
    default = (error.status, "Validation" if error.status < 500 else "Backend")
    status, kind = next((row[1:] for row in _STATUSES if isinstance(error, row[0])), default)
    message = error.message
    if error.field:
        # The model layer speaks of input[i], which is inputs[i] in this dialect.
        field = re.sub(r"^input\b", "inputs", error.field)
        message = message if field in message else f"{field}: {message}"
    return status, orjson.dumps({"error": message, "error_type": kind})
