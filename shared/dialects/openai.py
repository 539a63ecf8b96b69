"""OpenAI's, Voyage's, Mistral's and Jina's /v1/embeddings: body to contract, result to body; errors.

Does not know HTTP headers, backends or how a body was decoded. Shapes:
https://platform.openai.com/docs/api-reference/embeddings, https://docs.voyageai.com/reference,
https://docs.mistral.ai/api, https://api.jina.ai/redoc
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
import orjson

from shared.cards import ModelCard
from shared.contracts import EmbedRequest, EmbedResult, InputType, TextInput
from shared.dialects.body import (
    NOT_EMPTY,
    Count,
    Inputs,
    Text,
    TokenId,
    TokenIds,
    message_of,
    read_inputs,
)
from shared.dialects.number_types import EmbeddingType, NumberType, convert, encode_base64
from shared.errors import BlitzError, InvalidInput
from shared.settings import Settings
from shared.wire.codec import pack

OWNER = "blitz-embedding"

JinaTask: TypeAlias = Literal[
    "retrieval.query", "retrieval.passage", "text-matching", "classification", "separation"
]
T = TypeVar("T")

_INPUT_TYPES: dict[str, InputType] = {"query": "query", "document": "document", "passage": "document"}
_TASKS: dict[str, InputType] = {
    "retrieval.query": "query",
    "retrieval.passage": "document",
    "classification": "classification",
    "separation": "clustering",
}
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class TextObject(msgspec.Struct, frozen=True):
    """A text as an object, a form of Jina's clients."""

    text: Text


class EmbeddingsBody(msgspec.Struct, frozen=True):
    """POST /v1/embeddings: the fields of OpenAI, Voyage, Mistral and Jina, which do not conflict.

    `prompt_name` is ours, and so is `truncate`, for OpenAI's clients; it means Voyage's `truncation`.
    """

    input: Text | Annotated[list[Text | TokenId | TokenIds | TextObject], NOT_EMPTY]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    output_dimension: Count | None = None
    output_dtype: NumberType | None = None
    embedding_type: EmbeddingType | Annotated[list[EmbeddingType], NOT_EMPTY] | None = None
    encoding_type: EmbeddingType | None = None
    truncate: bool | None = None
    truncation: bool | None = None
    normalized: bool | None = None
    input_type: Literal["query", "document", "passage"] | None = None
    task: JinaTask | None = None
    prompt_name: str | None = None

    @property
    def inputs(self) -> Inputs:
        """The input with text objects unwrapped."""
        if isinstance(self.input, str):
            return self.input
        return [item.text if isinstance(item, TextObject) else item for item in self.input]


def request_from(body: EmbeddingsBody, *, model: str, settings: Settings) -> EmbedRequest:
    """The contract request. Raises InvalidInput and EmptyInput naming the field."""
    number_type, _ = output_format_of(body)
    normalize = body.normalized is not False
    if not normalize and number_type != "float":
        raise InvalidInput(
            f"{number_type} needs vectors of length one: leave normalized out", field="normalized"
        )
    truncates = _agreed(("truncate", body.truncate), ("truncation", body.truncation))
    return EmbedRequest(
        model=model,
        inputs=_inputs_of(body, settings),
        dimensions=_agreed(("dimensions", body.dimensions), ("output_dimension", body.output_dimension)),
        normalize=normalize,
        truncate=truncates is not False,
        prompt_name=body.prompt_name,
        input_type=_agreed(
            ("input_type", _INPUT_TYPES.get(body.input_type or "")),
            ("task", _TASKS.get(body.task or "")),
        ),
    )


def output_format_of(body: EmbeddingsBody) -> tuple[NumberType, bool]:
    """The number type, and whether to encode it in base64. Raises InvalidInput."""
    kinds = body.embedding_type if isinstance(body.embedding_type, list) else [body.embedding_type]
    if len(kinds) != 1:
        raise InvalidInput("embedding_type must name one type", field="embedding_type")
    jina: EmbeddingType | None = _agreed(
        ("embedding_type", kinds[0]), ("encoding_type", body.encoding_type)
    )
    is_base64 = body.encoding_format == "base64" or jina == "base64"
    # Voyage's output_dtype is the type of the bytes that encoding_format=base64 encodes.
    named: NumberType | None = None if jina is None or jina == "base64" else jina
    kind: NumberType | None = _agreed(("embedding_type", named), ("output_dtype", body.output_dtype))
    return kind or "float", is_base64


def format_result(result: EmbedResult, body: EmbeddingsBody) -> bytes:
    """JSON {id, object, data, model, usage}; Mistral's client requires the id."""
    answer = {"id": f"embd-{uuid.uuid4().hex}", **_list_of(_data(result, body), result)}
    return orjson.dumps(answer, option=_NUMPY)


def format_line(result: EmbedResult, body: EmbeddingsBody) -> bytes:
    """The same without the random id, so that lines of a batch are reproducible."""
    return orjson.dumps(_list_of(_data(result, body), result), option=_NUMPY)


def format_result_msgpack(result: EmbedResult, body: EmbeddingsBody) -> bytes:
    """As the JSON, but `data` is the (N, D) array itself, float32 by default."""
    number_type, _ = output_format_of(body)
    return pack(_list_of(convert(result.vectors, number_type, result.int8_range), result))


def format_models(listed: Mapping[str, Sequence[ModelCard]]) -> bytes:
    """JSON list of models. listed: accepted name -> the cards of what it stands for, one a device."""
    data = [_model(name, cards) for name, cards in listed.items()]
    return orjson.dumps({"object": "list", "data": data})


def format_model(name: str, cards: Sequence[ModelCard]) -> bytes:
    """JSON of one model."""
    return orjson.dumps(_model(name, cards))


def format_embeddings_error(error: BlitzError) -> tuple[int, bytes]:
    """As format_error, with the message in `detail` too, for clients of Voyage, Mistral and Jina."""
    return error.status, orjson.dumps({**_error(error), "detail": message_of(error, lambda name: name)})


def format_error(error: BlitzError) -> tuple[int, bytes]:
    """HTTP status and JSON body. The message includes the field: the SDK prints nothing else."""
    return error.status, orjson.dumps(_error(error))


def _error(error: BlitzError) -> dict[str, object]:
    if error.status == 429:
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
    message = message_of(error, lambda field: field)
    body = {"message": message, "type": kind, "param": error.field, "code": error.code}
    return {"error": body}


def _list_of(data: object, result: EmbedResult) -> dict[str, object]:
    usage = {"prompt_tokens": result.total_tokens, "total_tokens": result.total_tokens}
    return {"object": "list", "data": data, "model": result.model, "usage": usage}


def _data(result: EmbedResult, body: EmbeddingsBody) -> list[dict[str, object]]:
    number_type, packed = output_format_of(body)
    numbers = convert(result.vectors, number_type, result.int8_range)
    rows = encode_base64(numbers) if packed else numbers
    return [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]


def _inputs_of(body: EmbeddingsBody, settings: Settings) -> tuple[TextInput, ...]:
    inputs = read_inputs(body.inputs, field="input", max_inputs=settings.max_inputs)
    if not settings.allow_token_ids and any(not isinstance(item, str) for item in inputs):
        # LangChain sends tiktoken ids by default. In this model's vocabulary they are different words,
        # so the vectors would be silently wrong.
        raise InvalidInput(
            "token ids are not accepted, because ids of another vocabulary give wrong vectors: "
            "send texts (in LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
            field="input",
        )
    return inputs


def _agreed(one: tuple[str, T | None], other: tuple[str, T | None]) -> T | None:
    """The value of two dialects' fields for one thing. Raises InvalidInput if they conflict."""
    (name, value), (other_name, other_value) = one, other
    if value is None or other_value is None or value == other_value:
        return other_value if value is None else value
    raise InvalidInput(f"{name} and {other_name} contradict each other: send one", field=other_name)


def _model(name: str, cards: Sequence[ModelCard]) -> dict[str, object]:
    """An entry of the list. OpenAI has the first four fields; Mistral's client requires the next two.

    The others are ours. root: the model that an alias stands for.
    """
    first = cards[0]
    named = {"id": name, "object": "model", "created": first.created, "owned_by": OWNER}
    required = {"type": "base", "capabilities": {"completion_chat": False}}
    ours = {"root": first.name, "task": first.task, "builds": [_build(card) for card in cards]}
    ranges = {"int8_ranges": {str(size): value for size, value in first.int8_ranges}}
    return {**named, **required, **ours, **(ranges if first.int8_ranges else {})}


def _build(card: ModelCard) -> dict[str, object]:
    """What is published of a model for one device."""
    staged = {"revision": card.staged.card.revision} if card.staged else None
    return {
        "device": card.device,
        "target": card.target,
        "revision": card.revision,
        "staged": staged,
        "created": card.created,
        "architecture": card.architecture,
        "source": card.about.source,
        "size_bytes": card.size_bytes,
        "max_tokens": card.max_tokens,
        "dimensions": card.dimensions,
        "matryoshka_dimensions": card.about.matryoshka_dimensions,
        "pooling": card.pooling,
        "labels": card.labels,
        "prompts": card.about.prompts,
        "default_prompt": card.about.default_prompt,
        "quality": card.about.quality,
    }
