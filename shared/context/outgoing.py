"""What travels with a call of a backend, beside the request: its deadline, id and trace.

Does not know how backends are called.
"""

from __future__ import annotations

from shared.context import deadline, request_id, trace


def headers_of(span: trace.Span) -> dict[str, str]:
    """As HTTP headers. span: of the call."""
    headers = {trace.HEADER: span.traceparent}
    left_s = deadline.remaining_s()
    if left_s is not None:
        headers[deadline.HEADER] = str(max(1, int(left_s * 1000)))
    if named := request_id.current():
        headers[request_id.HEADER] = named
    return headers
