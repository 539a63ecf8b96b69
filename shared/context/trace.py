"""Which request or step is under way, wherever in its call tree one asks: spans of W3C Trace Context.

A span goes with the task, as a context variable, like shared.context.deadline. It holds no text and no
vector. Knows no exporter: `listen` is for those.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import msgspec

HEADER = "traceparent"
"""https://www.w3.org/TR/trace-context/: version, trace id, span id, flags."""

_IDS = r"-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}"
# Later versions may append fields; ff is no version.
_TRACEPARENT = re.compile(rf"00{_IDS}|(?!00|ff)[0-9a-f]{{2}}{_IDS}(?:-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


class Span(msgspec.Struct):
    """What this process works on: a request that it answers (server), one that it makes of another
    (client), or a step that nobody waits for, such as a queue's message (consumer).

    trace_id, span_id: 32 and 16 hex digits. parent_id: the span id of who called; empty: nobody told.
    name: method and route, or the step. target: host and port that a client calls. began_s: seconds
    since 1970. status: HTTP's, 0 if there was none; error: then, the class of what was raised, if any.
    labels, measures: what is known of the work: few values, and numbers.
    """

    kind: Literal["server", "client", "consumer"]
    name: str
    trace_id: str
    parent_id: str = ""
    target: str = ""
    span_id: str = msgspec.field(default_factory=lambda: secrets.token_hex(8))
    began_s: float = msgspec.field(default_factory=time.time)
    duration_s: float = 0.0
    status: int = 0
    error: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    measures: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def traceparent(self) -> str:
        """The header's value for what this span calls."""
        return f"00-{self.trace_id}-{self.span_id}-01"


Listener = Callable[[Span], None]

_current: ContextVar[Span | None] = ContextVar("span", default=None)
_listeners: list[Listener] = []


def current() -> Span | None:
    """The innermost span of this task; None outside of requests and steps."""
    return _current.get()


def listen(listener: Listener) -> Callable[[], None]:
    """Have each span told when it ends, in the thread that ends it; returns what undoes that.

    listener: must be quick, and must not raise.
    """
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


@contextmanager
def serving(traceparent: str = "") -> Iterator[Span]:
    """Around the answering of a request: continues the trace of a valid `traceparent`, or begins one.

    The name is for the caller to set, once it is known.
    """
    found = _TRACEPARENT.fullmatch(traceparent)
    trace_id, parent_id = secrets.token_hex(16), ""
    # Ids of zeros are none.
    if found:
        ids = [group for group in found.groups() if group]
        if ids[0] != _NO_TRACE and ids[1] != _NO_SPAN:
            trace_id, parent_id = ids
    with _running(Span("server", "", trace_id, parent_id)) as span:
        yield span


@contextmanager
def calling(name: str, target: str) -> Iterator[Span]:
    """Around one call of another process, to which `Span.traceparent` is to be sent.

    Outside of requests and steps it is told to nobody.
    """
    parent = current()
    if parent is None:
        yield Span("client", name, secrets.token_hex(16), target=target)
        return
    with _running(Span("client", name, parent.trace_id, parent.span_id, target)) as span:
        yield span


@contextmanager
def working(name: str) -> Iterator[Span]:
    """Around a step that no request asks for. Begins a trace; the caller may set another one's id."""
    with _running(Span("consumer", name, secrets.token_hex(16))) as span:
        yield span


def note(labels: dict[str, str], measures: dict[str, float]) -> None:
    """Add to what is known of the current span's work; nothing where there is none."""
    span = current()
    if span is not None:
        span.labels.update(labels)
        span.measures.update(measures)


@contextmanager
def _running(span: Span) -> Iterator[Span]:
    token = _current.set(span)
    began = time.perf_counter()
    try:
        yield span
    except BaseException as error:
        span.error = type(error).__name__
        raise
    finally:
        span.duration_s = time.perf_counter() - began
        _current.reset(token)
        for listener in _listeners:
            listener(span)
