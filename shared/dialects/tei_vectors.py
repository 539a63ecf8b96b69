"""Text Embeddings Inference's /embed_sparse and /embed_all: body to contract, result to body.

Does not know HTTP headers, backends or how a body was decoded. Errors are in tei's shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from shared.contracts import (
    EmbedSparseRequest,
    EmbedSparseResult,
    EmbedTokensRequest,
    EmbedTokensResult,
    InputType,
)
from shared.dialects.body import Inputs, read_inputs
from shared.dialects.tei import Options
from shared.settings import Settings
from shared.wire.codec import pack

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class VectorsBody(Options, frozen=True):
    """POST /embed_sparse and /embed_all. `input_type`, instead of a prompt's name, is ours."""

    inputs: Inputs
    model: str | None = None
    prompt_name: str | None = None
    input_type: InputType | None = None


def sparse_request_from(body: VectorsBody, *, model: str, settings: Settings) -> EmbedSparseRequest:
    """The contract request. Raises InvalidInput and EmptyInput naming the field."""
    return EmbedSparseRequest(model=model, **_asked(body, settings))


def tokens_request_from(body: VectorsBody, *, model: str, settings: Settings) -> EmbedTokensRequest:
    """As `sparse_request_from`."""
    return EmbedTokensRequest(model=model, **_asked(body, settings))


def _asked(body: VectorsBody, settings: Settings) -> dict[str, Any]:
    """What both requests have beside the model."""
    return {
        "inputs": read_inputs(body.inputs, field="inputs", max_inputs=settings.max_inputs),
        "truncate": body.truncates,
        "truncation_side": body.side,
        "prompt_name": body.prompt_name,
        "input_type": body.input_type,
    }


def format_sparse(result: EmbedSparseResult, body: VectorsBody) -> bytes:
    """JSON [[{index, value}]], a list for each input, even for a single text."""
    rows = (
        zip(row.indices.tolist(), row.values, strict=True) for row in result.per_input
    )  # value stays a float32: as a Python float it would have 17 digits
    answer = [[{"index": index, "value": value} for index, value in row] for row in rows]
    return orjson.dumps(answer, option=_NUMPY)


def format_sparse_msgpack(result: EmbedSparseResult, body: VectorsBody) -> bytes:
    """As columns: {counts: (N,) int32, indices: (K,) int32, values: (K,) float32}."""
    counts = np.array(result.counts, np.int32)
    return pack({"counts": counts, "indices": result.indices, "values": result.values})


def format_tokens(result: EmbedTokensResult, body: VectorsBody) -> bytes:
    """JSON [[[float]]]: for each input, the vector of each token."""
    rows = [np.ascontiguousarray(row) for row in result.per_input]
    return orjson.dumps(rows, option=_NUMPY)


def format_tokens_msgpack(result: EmbedTokensResult, body: VectorsBody) -> bytes:
    """{counts: (N,) int32, vectors: (K, D) float32}: the inputs' vectors one behind the other."""
    return pack({"counts": np.array(result.counts, np.int32), "vectors": result.vectors})
