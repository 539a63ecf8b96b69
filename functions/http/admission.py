"""Which requests are let in: so many at once, holding so many bytes, while the queue has room.

Stands before routing, so that a refusal costs neither a body nor a task. Does not know what a request
asks for, nor connections; those are functions.local.server's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.errors import BlitzError, Overloaded
from shared.observability.metrics import Telemetry

PROBES = ("/health", "/ready", "/metrics")
"""Asked every few seconds by machines, for ever. They are answered when nothing else is: an instance
that is busy is not dead, and its metrics say why."""

SMALL_BYTES = 64 * 1024
"""So much each request may hold; the number of requests bounds it. Only what is more is counted, so that
nobody who sends or asks for much keeps out those who do not."""

RETRY_S = 1.0

_RESERVATION = "blitz.reservation"


class ChecksCapacity(Protocol):
    """The part of shared.backends.base.Backend that is asked here."""

    def check(self) -> None:
        """Raise Overloaded if no request would be taken now."""


class Admission:
    """What requests under way hold, in one process. For one event loop.

    max_requests: under way at once. max_bytes: of their bodies and answers, as far as a request's are
    over SMALL_BYTES; one that is alone may have more, so that whatever is allowed gets its turn.
    """

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.requests = 0
        self.reserved_bytes = 0

    def acquire(self) -> Reservation:
        """A reservation for one more request, to be left at its end. Raises Overloaded."""
        if self.requests >= self._max_requests:
            raise Overloaded(
                f"{self._max_requests} requests are under way, and no more are taken: retry later",
                retry_after_s=RETRY_S,
            )
        self.requests += 1
        return Reservation(self)

    def reserve(self, size: int, *, held: int) -> None:
        """Count `size` more bytes for a request that holds `held`. Raises Overloaded."""
        others = self.reserved_bytes - held
        if others and others + held + size > self._max_bytes:
            raise Overloaded(
                f"other requests hold {others} bytes of texts and vectors, and this one would make it "
                f"more than {self._max_bytes}: retry later, or send less at once",
                retry_after_s=RETRY_S,
            )
        self.reserved_bytes += size

    def release(self, size: int) -> None:
        self.requests -= 1
        self.reserved_bytes -= size


class Reservation:
    """What one request holds."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._body_bytes = self._answer_bytes = self._counted = 0

    def reserve(self, *, body_bytes: int = 0, answer_bytes: int = 0) -> None:
        """The body has so many bytes in all, or up to now; the answer will. Raises Overloaded."""
        body = max(self._body_bytes, body_bytes)
        answer = max(self._answer_bytes, answer_bytes)
        more = body + answer - SMALL_BYTES - self._counted
        if more > 0:
            self._admission.reserve(more, held=self._counted)
            self._counted += more
        self._body_bytes, self._answer_bytes = body, answer

    def release(self) -> None:
        self._admission.release(self._counted)


class Admitted:
    """ASGI middleware: passes on what `admission` has a reservation for, and answers 429 else.

    backend: whose queue is asked before the body of a request for it is read. asks_backend: whether a
    path's requests are for it. refuse: the answer in the shape of the path's dialect.
    """

    def __init__(
        self,
        app: ASGIApp,
        admission: Admission,
        backend: ChecksCapacity,
        asks_backend: Callable[[str], bool],
        refuse: Callable[[str, BlitzError], Response],
        metrics: Telemetry,
    ) -> None:
        self._app = app
        self._admission = admission
        self._backend = backend
        self._asks_backend = asks_backend
        self._refuse = refuse
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        try:
            if self._asks_backend(scope["path"]):
                self._backend.check()
            reservation = self._admission.acquire()
        except BlitzError as error:
            self._metrics.request_failed(error.code)
            await self._refuse(scope["path"], error)(scope, receive, send)
            return
        scope[_RESERVATION] = reservation
        try:
            await self._app(scope, receive, send)
        finally:
            reservation.release()


def reserve(scope: Scope, *, body_bytes: int = 0, answer_bytes: int = 0) -> None:
    """As Reservation.reserve, for a request that came past Admitted; others are not counted."""
    if (reservation := scope.get(_RESERVATION)) is not None:
        reservation.reserve(body_bytes=body_bytes, answer_bytes=answer_bytes)
