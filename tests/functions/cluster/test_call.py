"""What travels beside a request to a replica."""

from __future__ import annotations

import pytest

from functions.cluster import call
from shared.context import deadline, request_id, trace
from shared.context.outgoing import headers_of
from shared.context.trace import Span


@pytest.mark.anyio
async def test_a_call_takes_deadline_id_and_trace_along(told: list[Span]) -> None:
    """The replica's span is of the router's trace, below the call's; its time is what is left."""
    with request_id.working_on("mine"), trace.serving() as served:
        async with deadline.within(60):
            with trace.calling("POST /embed", "cpu") as calling:
                headers = headers_of(calling)
    assert 0 < call.timeout_of(headers, 220.0) <= 60
    assert call.timeout_of(headers, 5.0) == 5.0
    with call.told(headers, "RUN /embed") as span:
        assert request_id.current() == "mine"
    assert (span.trace_id, span.parent_id) == (served.trace_id, calling.span_id)
    assert (span.name, span.labels) == ("RUN /embed", {"request_id": "mine"})
    assert [each.kind for each in told] == ["client", "server", "server"]


def test_a_call_outside_of_a_request_has_no_deadline() -> None:
    """A replica's own limit counts."""
    with trace.calling("POST /embed", "cpu") as calling:
        assert call.timeout_of(headers_of(calling), 220.0) == 220.0
