"""Requests, results and errors between router and backends, as values of the codec.

Requests and results are maps of the fields of shared.contracts' classes:
    EmbedRequest -> EmbedResult with "vectors" (N, D) <f4,
    RerankRequest -> RerankResult with "scores" (N,) <f8, and "logits" (N,) <f4 or nil,
    PredictRequest -> PredictResult with "scores" (N, L) <f8,
    TokenizeRequest -> TokenizeResult with "spans" (T, 4) <i4.
Error:   {"code": str, "message": str, "field": str | nil, "retry_after_s": float | nil}
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import numpy as np

from shared.contracts import (
    EmbedResult,
    PredictResult,
    Request,
    RerankResult,
    Result,
    TokenizeResult,
)
from shared.errors import BackendFailed, BlitzError, InvalidInput
from shared.wire.codec import pack, unpack

MAX_RESPONSE_BYTES = 256_000_000
"""What a result may take: 2,048 vectors of 8,192 dimensions are 67 MB."""


_ARRAYS: dict[type[object], tuple[str, str, int]] = {
    EmbedResult: ("vectors", "<f4", 2),
    RerankResult: ("scores", "<f8", 1),
    PredictResult: ("scores", "<f8", 2),
    TokenizeResult: ("spans", "<i4", 2),
}
"""The field of a result that is an array, its type and dimensions. One row or entry a token count, or a
token."""


AnyRequest = TypeVar("AnyRequest", bound=Request)
AnyResult = TypeVar("AnyResult", EmbedResult, RerankResult, PredictResult, TokenizeResult)


class _Error(msgspec.Struct):
    code: str
    message: str
    field: str | None = None
    retry_after_s: float | None = None


def pack_request(request: Request) -> bytes:
    return pack(msgspec.to_builtins(request))


def unpack_request(data: bytes, kind: type[AnyRequest], *, max_bytes: int) -> AnyRequest:
    """Raises InvalidInput and EmptyInput."""
    value = unpack(data, max_bytes=max_bytes)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the request is not valid: {error}") from None


def pack_result(result: Result) -> bytes:
    return pack(msgspec.to_builtins(result, builtin_types=(np.ndarray,)))


def unpack_result(
    data: bytes, kind: type[AnyResult], *, max_bytes: int = MAX_RESPONSE_BYTES
) -> AnyResult:
    """Raises BackendFailed: a backend, not a caller, wrote this."""
    name, dtype, dimensions = _ARRAYS[kind]
    try:
        value = unpack(data, max_bytes=max_bytes)
        array = value[name]
        result = msgspec.convert(value, kind)
        if not isinstance(array, np.ndarray) or array.dtype.str != dtype or array.ndim != dimensions:
            raise TypeError(name)
        logits = result.logits if isinstance(result, RerankResult) else None
        if logits is not None and (logits.dtype.str, logits.shape) != ("<f4", array.shape):
            raise TypeError("logits")
        if isinstance(result, TokenizeResult):
            if not array.shape == (len(result.texts), 4) == (result.total_tokens, 4):
                raise ValueError("texts")
        elif array.shape[0] != len(result.token_counts):
            raise ValueError("token_counts")
    except (InvalidInput, msgspec.ValidationError, LookupError, TypeError, ValueError):
        raise BackendFailed("the backend's answer could not be read") from None
    return result


def pack_error(error: BlitzError) -> bytes:
    return pack(
        {
            "code": error.code,
            "message": error.message,
            "field": error.field,
            "retry_after_s": error.retry_after_s,
        }
    )


def unpack_error(data: bytes, *, max_bytes: int = 65_536) -> BlitzError:
    """The error that the backend raised, of the same class; BackendFailed if that cannot be told."""
    try:
        packed = msgspec.convert(unpack(data, max_bytes=max_bytes), _Error)
        kind = _error_classes()[packed.code]
    except (InvalidInput, msgspec.ValidationError, KeyError):
        return BackendFailed("the backend failed and did not say why")
    return kind(packed.message, field=packed.field, retry_after_s=packed.retry_after_s)


def _error_classes(base: type[BlitzError] = BlitzError) -> dict[str, type[BlitzError]]:
    classes = {base.code: base}
    for child in base.__subclasses__():
        classes |= _error_classes(child)
    return classes
