"""Ollama's /api/embed, /api/embeddings, /api/tags, /api/show: body to contract, result to body; errors.

Does not know HTTP headers, backends or how a body was decoded. Shapes:
https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import numpy as np
import orjson

from shared.cards import ModelCard
from shared.contracts import EmbedRequest, EmbedResult
from shared.dialects.body import NOT_EMPTY, Count, Inputs, Text, message_of, read_inputs, rename
from shared.errors import BlitzError
from shared.settings import Settings
from shared.wire.codec import pack

API_VERSION = "0.11.11"
"""The first Ollama with everything supported here; clients check it and refuse older versions."""
LATEST = ":latest"
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class OllamaBody(msgspec.Struct, frozen=True):
    """POST /api/embed."""

    input: Text | Annotated[list[Text], NOT_EMPTY]
    model: str | None = None
    truncate: bool | None = None
    dimensions: Count | None = None


class OllamaPromptBody(msgspec.Struct, frozen=True):
    """POST /api/embeddings, the older route: one text; its vector is not normalised."""

    prompt: Text
    model: str | None = None


class ShowBody(msgspec.Struct, frozen=True):
    """POST /api/show. `name` is the old name of `model`; other fields concern text generation."""

    model: str | None = None
    name: str | None = None


def spellings(name: str) -> tuple[str, ...]:
    """Equivalent names of a model: no tag means :latest."""
    if name.endswith(LATEST):
        return name, name.removesuffix(LATEST)
    return (name,) if _has_tag(name) else (name, name + LATEST)


def request_from(body: OllamaBody, *, model: str, settings: Settings) -> EmbedRequest:
    """The contract request. Raises InvalidInput and EmptyInput naming the field."""
    texts: Inputs = body.input if isinstance(body.input, str) else [*body.input]
    return EmbedRequest(
        model=model,
        inputs=read_inputs(texts, field="input", max_inputs=settings.max_inputs),
        dimensions=body.dimensions,
        truncate=body.truncate is not False,
    )


def prompt_request_from(body: OllamaPromptBody, *, model: str, settings: Settings) -> EmbedRequest:
    """The contract request. Raises EmptyInput."""
    (text,) = read_inputs(body.prompt, field="prompt", max_inputs=settings.max_inputs)
    return EmbedRequest(model=model, inputs=(text,), normalize=False)


def format_result(result: EmbedResult, body: OllamaBody) -> bytes:
    """JSON {model, embeddings, total_duration, load_duration, prompt_eval_count}; durations in ns."""
    return orjson.dumps(_answer(result), option=_NUMPY)


def format_result_msgpack(result: EmbedResult, body: OllamaBody) -> bytes:
    """As the JSON, with the embeddings as an (N, D) float32 array."""
    return pack(_answer(result))


def format_prompt(result: EmbedResult, body: OllamaPromptBody) -> bytes:
    """JSON {embedding}."""
    return orjson.dumps({"embedding": np.ascontiguousarray(result.vectors[0])}, option=_NUMPY)


def format_prompt_msgpack(result: EmbedResult, body: OllamaPromptBody) -> bytes:
    """{embedding: (D,) float32}."""
    return pack({"embedding": np.ascontiguousarray(result.vectors[0])})


def format_tags(cards: Sequence[ModelCard]) -> bytes:
    """GET /api/tags. Names have a tag, as in all of Ollama's lists."""
    return orjson.dumps({"models": [_tag(card) for card in cards]})


def format_version() -> bytes:
    """GET /api/version."""
    return orjson.dumps({"version": API_VERSION})


def format_show(card: ModelCard, usable_tokens: int) -> bytes:
    """POST /api/show. usable_tokens: the longest input that the model's backend accepts.

    Fields about text generation, such as the template, are empty.
    """
    family = card.architecture
    info: dict[str, object] = {
        "general.architecture": family,
        f"{family}.context_length": usable_tokens,
    }
    if card.task == "embedding":
        info[f"{family}.embedding_length"] = card.dimensions
    empty = dict.fromkeys(("license", "modelfile", "parameters", "template"), "")
    return orjson.dumps({**empty, **_described(card), "model_info": info})


def format_error(error: BlitzError) -> tuple[int, bytes]:
    """HTTP status and JSON {error}."""
    return error.status, orjson.dumps({"error": message_of(error, lambda field: field)})


def format_prompt_error(error: BlitzError) -> tuple[int, bytes]:
    """As format_error, with the single input named prompt."""
    names = {"input": "prompt"}
    message = message_of(error, lambda field: rename(field, names).removesuffix("[0]"))
    return error.status, orjson.dumps({"error": message})


def _answer(result: EmbedResult) -> dict[str, object]:
    timings = result.timings
    seconds = timings.tokenization_s + timings.queue_s + timings.inference_s
    return {
        "model": result.model,
        "embeddings": np.ascontiguousarray(result.vectors),
        "total_duration": round(seconds * 1e9),
        "load_duration": 0,
        "prompt_eval_count": result.total_tokens,
    }


def _tag(card: ModelCard) -> dict[str, object]:
    name = card.name if _has_tag(card.name) else card.name + LATEST
    named = {"name": name, "model": name, "size": card.size_bytes, "digest": card.revision}
    return {**named, **_described(card)}


def _described(card: ModelCard) -> dict[str, object]:
    return {
        "modified_at": datetime.fromtimestamp(card.created, UTC).isoformat(),
        "details": {
            "parent_model": "",
            "format": card.target,
            "family": card.architecture,
            "families": [card.architecture],
            "parameter_size": "",
            "quantization_level": card.target.rpartition("-")[2].upper(),
        },
        "capabilities": ["embedding"] if card.task == "embedding" else [],
    }


def _has_tag(name: str) -> bool:
    """Whether `name` has a tag; a colon before a slash is a host's port."""
    return ":" in name.rpartition("/")[2]
