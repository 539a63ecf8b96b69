"""One call from a router to a replica: what travels beside the packed request, and how it ends.

The request and its answer are shared.wire's bytes; Ray carries them. Does not know Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from shared.context import deadline, request_id, trace

Answer: TypeAlias = tuple[bool, bytes]
"""Whether it is a result, and its bytes: a packed result or a packed error. An error is not raised
through Ray, which would pickle it."""


def timeout_of(headers: Mapping[str, str], most_s: float) -> float:
    """Seconds that the router will wait, `most_s` at most."""
    stated = headers.get(deadline.HEADER)
    return min(most_s, int(stated) / 1000) if stated else most_s


@contextmanager
def told(headers: Mapping[str, str], name: str) -> Iterator[trace.Span]:
    """Around the answering of a call: its id is the request's, and its span continues the trace."""
    with (
        request_id.working_on(headers.get(request_id.HEADER, "")),
        trace.serving(headers.get(trace.HEADER, "")) as span,
    ):
        span.name = name
        span.labels["request_id"] = request_id.current()
        yield span
