"""The error tree: every error that this project raises on purpose, with its HTTP status.

Each dialect formats these in its own shape, which this module does not know.

BlitzError
├── InvalidInput            400  the caller can fix it; `field` names what
│   ├── EmptyInput          400  nothing to embed
│   ├── InvalidMessage      400  a queue message that is not a bulk step's: retries do not help
│   └── InputTooLong        400  more tokens than the model's limit, with truncation off
│       └── BeyondMemory    400  more tokens than the memory allows
├── Unauthorized            401  the key is missing or unknown
├── QuotaExceeded           403  a caller's storage quota is used up; deleting helps, retrying does not
├── RequestTimeout          408  the body arrived too slowly
├── PayloadTooLarge         413  body, inputs or tokens over a limit
├── UnsupportedMediaType    415  unsupported content type
├── UnknownModel            404  no such model in the store
├── NotFound                404  no such file or batch
├── SourceChanged           409  a bulk job's input changed after the job began
├── Overloaded              429  the queue is full; `retry_after_s`
├── Unavailable             503  temporary; `retry_after_s` if known
│   ├── ModelLoadFailed     503  the model exists but failed to load
│   └── StoreUnavailable    503  the model store did not answer
├── BackendFailed           502  a backend broke the protocol or the connection
├── DeadlineExceeded        504  the caller's or the service's time is up
├── NotFinite               500  a model's result is NaN or infinite; retrying does not help
└── Misconfigured           500  invalid settings or files: fail at load
    └── InvalidArtefact     500  a model's files do not match their manifest
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

_NAMED_MODELS = 50
_MAX_CHARACTERS = 100


def printable(name: str) -> str:
    """A caller's name, safe to repeat: "?" for what cannot be printed, cut to a line."""
    text = "".join(each if each.isprintable() else "?" for each in name[: _MAX_CHARACTERS + 1])
    return f"{text[:_MAX_CHARACTERS]}..." if len(name) > _MAX_CHARACTERS else text


class BlitzError(Exception):
    """Base of the tree. `str(error)` is safe to show to a client.

    field: dotted path of the offending request field, e.g. "input[3]"; None if none.
    retry_after_s: seconds after which a retry may work; None if unknown.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(
        self, message: str, *, field: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidInput(BlitzError):
    status = 400
    code = "invalid_input"


class EmptyInput(InvalidInput):
    code = "empty_input"


class InvalidMessage(InvalidInput):
    code = "invalid_message"


class InputTooLong(InvalidInput):
    code = "input_too_long"


class BeyondMemory(InputTooLong):
    code = "beyond_memory"


class Unauthorized(BlitzError):
    status = 401
    code = "invalid_api_key"


class QuotaExceeded(BlitzError):
    status = 403
    code = "quota_exceeded"


class RequestTimeout(BlitzError):
    status = 408
    code = "request_timeout"


class PayloadTooLarge(BlitzError):
    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(BlitzError):
    status = 415
    code = "unsupported_media_type"


class UnknownModel(BlitzError):
    status = 404
    code = "model_not_found"

    @classmethod
    def among(cls, names: Iterable[str], asked: str) -> UnknownModel:
        """The error for `asked`, which is none of the suitable models `names`."""
        named = list(names)
        there_are = ", ".join(named[:_NAMED_MODELS]) or "none"
        if len(named) > _NAMED_MODELS:
            there_are += f" and {len(named) - _NAMED_MODELS} more"
        return cls(f"there is no model {printable(asked)!r}; there are: {there_are}", field="model")


class NotFound(BlitzError):
    status = 404
    code = "not_found"


class SourceChanged(BlitzError):
    status = 409
    code = "source_changed"


class Overloaded(BlitzError):
    status = 429
    code = "overloaded"


class Unavailable(BlitzError):
    status = 503
    code = "unavailable"


class ModelLoadFailed(Unavailable):
    code = "model_load_failed"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class BackendFailed(BlitzError):
    status = 502
    code = "backend_failed"


class DeadlineExceeded(BlitzError):
    status = 504
    code = "deadline_exceeded"


class NotFinite(BlitzError):
    status = 500
    code = "not_finite"


class Misconfigured(BlitzError):
    status = 500
    code = "misconfigured"


class InvalidArtefact(Misconfigured):
    code = "invalid_artefact"
