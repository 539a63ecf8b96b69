"""Text Embeddings Inference's /embed, /similarity, /info and errors: body to contract, result to body.

Does not know HTTP headers, backends or how a body was decoded; /rerank and /predict are in tei_scores.
Shapes: https://huggingface.github.io/text-embeddings-inference
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
import orjson

from shared.cards import ModelCard
from shared.contracts import EmbedRequest, EmbedResult, FloatMatrix, TruncationSide
from shared.dialects.body import (
    NOT_EMPTY,
    Count,
    Inputs,
    Text,
    check_count,
    message_of,
    read_inputs,
    rename,
)
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
from shared.wire.codec import pack

_STATUSES: tuple[tuple[type[BlitzError], int, str], ...] = (
    (EmptyInput, 400, "Empty"),
    (InputTooLong, 422, "Validation"),
    (InvalidInput, 422, "Validation"),
    (Overloaded, 429, "Overloaded"),
    (Unavailable, 503, "Unhealthy"),
    (BackendFailed, 424, "Backend"),
)
"""TEI's status and error type, first match; other errors keep their status."""

_DTYPES = {
    "cpu-int8": "int8",
    "cpu-int8-static": "int8",
    "cpu-bf16": "bfloat16",
    "cpu-fp32": "float32",
    "cpu-static": "float32",
    "gpu-fp16": "float16",
}
_NAMES = {"input": "inputs", "documents": "texts"}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of every body. Unknown fields are ignored."""

    truncate: bool | None = None
    truncation_direction: Literal["Right", "Left", "right", "left"] | None = None

    @property
    def truncates(self) -> bool:
        """Whether long texts are cut: by default they are."""
        return self.truncate is not False

    @property
    def side(self) -> TruncationSide:
        """The side that is cut off: by default the right one."""
        return "left" if self.truncation_direction in ("Left", "left") else "right"


class EmbedBody(Options, frozen=True):
    """POST /embed. `model`, here and below, is our extension for several models."""

    inputs: Inputs
    model: str | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: Count | None = None


class Sentences(msgspec.Struct, frozen=True):
    """The inputs of /similarity: one sentence to compare with each of the others."""

    source_sentence: Text
    sentences: Annotated[list[Text], NOT_EMPTY]


class SimilarityOptions(Options, frozen=True):
    """The `parameters` of /similarity."""

    prompt_name: str | None = None


class SimilarityBody(msgspec.Struct, frozen=True):
    """POST /similarity."""

    inputs: Sentences
    model: str | None = None
    parameters: SimilarityOptions | None = None


def request_from(body: EmbedBody, *, model: str, settings: Settings) -> EmbedRequest:
    """The contract request. Raises InvalidInput and EmptyInput naming the field."""
    return EmbedRequest(
        model=model,
        inputs=read_inputs(body.inputs, field="inputs", max_inputs=settings.max_inputs),
        dimensions=body.dimensions,
        normalize=body.normalize is not False,
        truncate=body.truncates,
        truncation_side=body.side,
        prompt_name=body.prompt_name,
    )


def similarity_request_from(body: SimilarityBody, *, model: str, settings: Settings) -> EmbedRequest:
    """Embeds the source sentence, then the others. Raises InvalidInput and EmptyInput."""
    sentences, field = body.inputs.sentences, "inputs.sentences"
    if not sentences:
        raise EmptyInput(f"{field} is empty: send at least one text", field=field)
    check_count(len(sentences) + 1, field=field, max_inputs=settings.max_inputs)
    options = body.parameters or SimilarityOptions()
    return EmbedRequest(
        model=model,
        inputs=(body.inputs.source_sentence, *sentences),
        truncate=options.truncates,
        truncation_side=options.side,
        prompt_name=options.prompt_name,
    )


def format_result(result: EmbedResult, body: EmbedBody) -> bytes:
    """JSON [[float]], two-dimensional even for a single text."""
    vectors = np.ascontiguousarray(result.vectors)
    return orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY)


def format_result_msgpack(result: EmbedResult, body: EmbedBody) -> bytes:
    """The (N, D) float32 array."""
    return pack(result.vectors)


def format_similarity(result: EmbedResult, body: SimilarityBody) -> bytes:
    """JSON [float]: each sentence's cosine with the source."""
    return orjson.dumps(_cosines(result.vectors), option=orjson.OPT_SERIALIZE_NUMPY)


def format_similarity_msgpack(result: EmbedResult, body: SimilarityBody) -> bytes:
    """The (N,) float32 array."""
    return pack(_cosines(result.vectors))


def format_info(card: ModelCard, settings: Settings, version: str, usable_tokens: int) -> bytes:
    """GET /info of one model. usable_tokens: the longest input that its backend accepts.

    max_batch_tokens is the limit of a request: backends form their batches themselves.
    """
    info = {
        "model_id": card.name,
        "model_sha": card.revision,
        "model_dtype": _DTYPES.get(card.target, card.target),
        "model_type": _model_type(card),
        "max_concurrent_requests": settings.max_requests,
        "max_input_length": min(usable_tokens, settings.max_request_tokens),
        "max_batch_tokens": settings.max_request_tokens,
        "max_client_batch_size": settings.max_inputs,
        "auto_truncate": True,
        "version": version,
    }
    return orjson.dumps(info)


def format_error(error: BlitzError) -> tuple[int, bytes]:
    """HTTP status and JSON body."""
    return _format_error(error, message_of(error, lambda field: rename(field, _NAMES)))


def format_similarity_error(error: BlitzError) -> tuple[int, bytes]:
    """As format_error, with input[0] named inputs.source_sentence and input[3] inputs.sentences[2]."""
    return _format_error(error, message_of(error, _name_sentence))


def _format_error(error: BlitzError, message: str) -> tuple[int, bytes]:
    default = (error.status, "Validation" if error.status < 500 else "Backend")
    status, kind = next((row[1:] for row in _STATUSES if isinstance(error, row[0])), default)
    return status, orjson.dumps({"error": message, "error_type": kind})


def _name_sentence(field: str) -> str:
    name, _, index = field.rstrip("]").partition("[")
    if name != "input" or not index:
        return rename(field, _NAMES)
    return "inputs.source_sentence" if index == "0" else f"inputs.sentences[{int(index) - 1}]"


def _cosines(vectors: FloatMatrix) -> FloatMatrix:
    """Cosines of the first unit vector with the others, one by one: a matrix product's rounding may
    depend on N."""
    return np.array([float(vectors[0] @ row) for row in vectors[1:]], np.float32)


def _model_type(card: ModelCard) -> dict[str, object]:
    if card.task != "cross-encoder":
        return {"embedding": {"pooling": card.pooling or "none"}}
    labels = {
        "id2label": {str(index): label for index, label in enumerate(card.labels)},
        "label2id": {label: index for index, label in enumerate(card.labels)},
    }
    return {"reranker" if len(card.labels) == 1 else "classifier": labels}
