"""Spans: which trace they belong to, and what they are told to."""

from __future__ import annotations

import asyncio

import pytest

from shared.context import trace
from shared.context.trace import Span

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    "traceparent", [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00", f"cc-{TRACE}-{PARENT}-01-new"]
)
def test_a_valid_traceparent_is_continued(traceparent: str) -> None:
    """Of later versions too, whatever they append."""
    with trace.serving(traceparent) as span:
        assert (span.trace_id, span.parent_id) == (TRACE, PARENT)
        assert span.traceparent == f"00-{TRACE}-{span.span_id}-01"
    assert span.span_id != PARENT


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "hello",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-new",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\n",
    ],
)
def test_any_other_one_begins_a_new_trace(traceparent: str) -> None:
    """As the specification says: none is better than a wrong one."""
    with trace.serving(traceparent) as span:
        assert span.parent_id == ""
        assert span.trace_id != TRACE
        assert len(span.trace_id) == 32


def test_calls_belong_to_the_request_they_are_made_for(told: list[Span]) -> None:
    """One after the other, and side by side in tasks."""

    async def call(name: str) -> None:
        with trace.calling(name, "host:1"):
            await asyncio.sleep(0)

    async def request() -> str:
        with trace.serving() as span:
            await asyncio.gather(call("a"), call("b"))
            await call("c")
        return span.span_id

    async def both() -> tuple[str, str]:
        return await asyncio.gather(request(), request())

    for request_id in asyncio.run(both()):
        calls = [span for span in told if span.parent_id == request_id]
        assert sorted(span.name for span in calls) == ["a", "b", "c"]
    assert trace.current() is None
    assert [span.kind for span in told].count("server") == 2


def test_a_call_outside_of_requests_is_told_to_nobody(told: list[Span]) -> None:
    """Such as waking the GPU; it has ids all the same."""
    with trace.calling("GET /health", "host:1") as span:
        assert span.traceparent
    assert told == []


def test_a_step_begins_a_trace_and_what_it_calls_belongs_to_it(told: list[Span]) -> None:
    """Of another id than the last one, unless the step sets one, as long as it has called nobody."""
    with trace.working("bulk embed") as first:
        pass
    with trace.working("bulk embed") as step:
        assert step.trace_id != first.trace_id
        step.trace_id = TRACE
        with trace.calling("POST /embed", "host:1") as call:
            pass
    assert (call.trace_id, call.parent_id) == (TRACE, step.span_id)
    assert [span.kind for span in told] == ["consumer", "client", "consumer"]


def test_what_is_noted_is_the_current_spans() -> None:
    """And outside of requests nobody's."""
    trace.note({"model": "m"}, {"tokens": 1})
    with trace.serving() as span:
        trace.note({"model": "m"}, {"tokens": 7})
    assert (span.labels, span.measures) == ({"model": "m"}, {"tokens": 7})


def test_a_span_that_fails_ends_and_names_the_class(told: list[Span]) -> None:
    """Cancellation included."""
    with pytest.raises(asyncio.CancelledError), trace.serving():
        raise asyncio.CancelledError("message")
    assert [span.error for span in told] == ["CancelledError"]
    assert trace.current() is None
