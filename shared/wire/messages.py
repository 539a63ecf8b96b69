"""Requests, results and errors between router and backends, as values of the codec.

Requests and results are maps of the fields of shared.contracts' classes:
    EmbedRequest -> EmbedResult with "vectors" (N, D) <f4,
    RerankRequest -> RerankResult with "scores" (N,) <f8, and "logits" (N,) <f4 or nil,
    PredictRequest -> PredictResult with "scores" (N, L) <f8,
    TokenizeRequest -> TokenizeResult with "spans" (T, 4) <i4,
    DecodeRequest -> DecodeResult, without an array.
Error:   {"code": str, "message": str, "field": str | nil, "retry_after_s": float | nil}
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from shared.contracts import AnyRequest, RequestT, Result, ResultT
from shared.errors import BackendFailed, BlitzError, InvalidInput
from shared.wire.codec import pack, unpack

MAX_RESPONSE_BYTES = 256_000_000
"""Maximum size of a result: 2,048 vectors of 8,192 dimensions are 67 MB."""


class _Error(msgspec.Struct):
    code: str
    message: str
    field: str | None = None
    retry_after_s: float | None = None


def pack_request(request: AnyRequest) -> bytes:
    """The request's fields as msgpack."""
    return pack(msgspec.to_builtins(request))


def unpack_request(data: bytes, kind: type[RequestT], *, max_bytes: int) -> RequestT:
    """Raises InvalidInput and EmptyInput."""
    value = unpack(data, max_bytes=max_bytes)
    try:
        request = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the request is not valid: {error}") from None
    return request


def pack_result(result: Result) -> bytes:
    """The result's fields as msgpack, arrays as they are in memory."""
    return pack(msgspec.to_builtins(result, builtin_types=(np.ndarray,)))


def unpack_result(data: bytes, kind: type[ResultT], *, max_bytes: int = MAX_RESPONSE_BYTES) -> ResultT:
    """Raises BackendFailed, because a backend wrote the data."""
    try:
        result = msgspec.convert(unpack(data, max_bytes=max_bytes), kind)
        for name in kind.joined:
            _check_rows(kind, name, getattr(result, name), result.rows)
    except (InvalidInput, msgspec.ValidationError, TypeError, ValueError):
        raise BackendFailed("the backend's response is not valid") from None
    return result


def _check_rows(kind: type[Result], name: str, value: Any, rows: int) -> None:
    """Raises TypeError or ValueError if a field does not match its class's declared arrays."""
    if value is None:
        return  # optional, or msgspec would have refused it
    if name in kind.arrays:
        dtype, row = kind.arrays[name]
        if not isinstance(value, np.ndarray) or (value.dtype.str, value.ndim) != (dtype, 1 + len(row)):
            raise TypeError(name)
        if any(length not in (None, each) for length, each in zip(row, value.shape[1:], strict=True)):
            raise ValueError(name)
    if len(value) != rows:
        raise ValueError(name)


def pack_error(error: BlitzError) -> bytes:
    """Code, message, field and retry_after_s as msgpack."""
    return pack(
        {
            "code": error.code,
            "message": error.message,
            "field": error.field,
            "retry_after_s": error.retry_after_s,
        }
    )


def unpack_error(data: bytes, *, max_bytes: int = 65_536) -> BlitzError:
    """The error that the backend raised, of the same class; BackendFailed if it is not readable."""
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
