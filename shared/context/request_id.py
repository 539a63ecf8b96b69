"""What a request is called: by its caller, in our answer and logs, and by the backends that it leads to.

Goes with the task, as a context variable, like shared.context.deadline. Does not know HTTP, but for the
names of the headers.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

HEADER = "x-request-id"
AZURE_HEADER = "x-ms-client-request-id"
"""What Azure's clients send, and find again in the answers of Azure's services."""

_SANE = re.compile(r"[A-Za-z0-9._~:=+/@-]{1,128}")
"""Nothing that ends a line of a log, begins a field of one, or is a text."""

_current: ContextVar[str] = ContextVar("request_id", default="")


def current() -> str:
    """The id of the request that this task works on; empty outside of requests."""
    return _current.get()


def is_sane(request_id: str) -> bool:
    """Whether it is short and printable enough to be echoed and logged."""
    return _SANE.fullmatch(request_id) is not None


def choose(*told: str) -> str:
    """The first sane one of what a caller told, or else a new one."""
    return next(filter(is_sane, told), "") or str(uuid.uuid4())


@contextmanager
def working_on(request_id: str) -> Iterator[None]:
    """Around the answering of a request."""
    token = _current.set(request_id)
    try:
        yield
    finally:
        _current.reset(token)
