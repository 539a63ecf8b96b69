"""Text Embeddings Inference's /tokenize and /decode: body to contract, result to body.

Does not know HTTP headers, backends or how a body was decoded. Errors are in tei's shape.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
import orjson

from shared.contracts import DecodeRequest, DecodeResult, TokenizeRequest, TokenizeResult
from shared.dialects.body import NOT_EMPTY, TokenId, TokenIds, check_count
from shared.errors import InvalidInput
from shared.request_size import check_tokens
from shared.settings import Settings
from shared.wire.codec import pack


class TokenizeBody(msgspec.Struct, frozen=True):
    """POST /tokenize. Only here may a text be empty."""

    inputs: str | Annotated[list[str], NOT_EMPTY]
    model: str | None = None
    add_special_tokens: bool | None = None
    prompt_name: str | None = None


class DecodeBody(msgspec.Struct, frozen=True):
    """POST /decode. ids: of one text, or one list per text."""

    ids: Annotated[list[TokenId | TokenIds], NOT_EMPTY]
    model: str | None = None
    skip_special_tokens: bool | None = None


def request_from(body: TokenizeBody, *, model: str, settings: Settings) -> TokenizeRequest:
    """The contract request. Raises InvalidInput and EmptyInput naming the field."""
    inputs = (body.inputs,) if isinstance(body.inputs, str) else tuple(body.inputs)
    check_count(len(inputs), field="inputs", max_inputs=settings.max_inputs)
    return TokenizeRequest(
        model=model,
        inputs=inputs,
        special_tokens=body.add_special_tokens is not False,
        prompt_name=body.prompt_name,
    )


def format_result(result: TokenizeResult, body: TokenizeBody) -> bytes:
    """JSON [[{id, text, special, start, stop}]], one list per input, even for a single text.

    start and stop are byte offsets in UTF-8; null for a special token.
    """
    tokens = (
        {
            "id": token,
            "text": text,
            "special": bool(special),
            "start": None if special else start,
            "stop": None if special else stop,
        }
        for (token, special, start, stop), text in zip(result.spans.tolist(), result.texts, strict=True)
    )
    # Consumes the iterator: each input in turn takes its number of tokens.
    return orjson.dumps([[next(tokens) for _ in range(count)] for count in result.token_counts])


def format_result_msgpack(result: TokenizeResult, body: TokenizeBody) -> bytes:
    """As columns: {counts: (N,) int32, spans: (T, 4) int32, texts: [str]}, see TokenizeResult."""
    counts = np.array(result.token_counts, np.int32)
    return pack({"counts": counts, "spans": result.spans, "texts": list(result.texts)})


def decode_request_from(body: DecodeBody, *, model: str, settings: Settings) -> DecodeRequest:
    """The contract request. Raises InvalidInput, EmptyInput and PayloadTooLarge."""
    single = tuple(each for each in body.ids if isinstance(each, int))
    lists = tuple(tuple(each) for each in body.ids if not isinstance(each, int))
    if single and lists:
        raise InvalidInput("ids mixes numbers and lists: send [[1], [2, 3]]", field="ids")
    check_count(len(lists), field="ids", max_inputs=settings.max_inputs)
    inputs = lists or (single,) if body.ids else ()
    check_tokens(sum(map(len, inputs)), settings.max_request_tokens, "ids")
    return DecodeRequest(model, inputs, body.skip_special_tokens is not False)


def format_texts(result: DecodeResult, body: DecodeBody) -> bytes:
    """JSON [str], a list even for a single text."""
    return orjson.dumps(result.texts)


def format_texts_msgpack(result: DecodeResult, body: DecodeBody) -> bytes:
    """As the JSON."""
    return pack(list(result.texts))
