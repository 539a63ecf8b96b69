"""Each HTTP request as a span: through the middleware, the router's app and a backend's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from starlette.types import Message, Receive, Scope, Send

from functions.http.tracing import Traced
from shared.context.trace import Span

pytestmark = pytest.mark.anyio

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HOST = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"


async def _ask(
    path: str = "/x/secret", *, error: bool = False, host: object = None, caller: str = CALLER
) -> None:
    """One request to an app whose router finds /x/{name}."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = SimpleNamespace(path_format="/x/{name}")
        if error:
            raise KeyError
        await send({"type": "http.response.start", "status": 201, "headers": []})

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        pass

    headers = [(b"traceparent", caller.encode())] if caller else []
    scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    if host:
        scope["azure_functions.trace_context"] = host
    await Traced(app)(scope, receive, send)


async def test_a_request_is_a_span_of_its_callers_trace(told: list[Span]) -> None:
    """Named after the route, since the path may hold anything."""
    await _ask()
    (span,) = told
    assert (span.kind, span.name, span.status) == ("server", "POST /x/{name}", 201)
    assert (span.trace_id, span.parent_id) == tuple(CALLER.split("-")[1:3])


async def test_the_functions_host_does_not_come_between(told: list[Span]) -> None:
    """It continues the header's trace in a span of its own that nobody sends; it begins one without."""
    await _ask(host=SimpleNamespace(trace_parent=HOST))
    await _ask(host=SimpleNamespace(trace_parent=HOST), caller="")
    assert [span.parent_id for span in told] == [each.split("-")[2] for each in (CALLER, HOST)]


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
async def test_probes_are_no_spans(told: list[Span], path: str) -> None:
    """They come every few seconds, for ever."""
    await _ask(path)
    assert told == []


async def test_a_request_that_ends_in_an_error_is_told_too(told: list[Span]) -> None:
    """The server answers 500 after this."""
    with pytest.raises(KeyError):
        await _ask(error=True)
    assert (told[0].status, told[0].error) == (0, "KeyError")
