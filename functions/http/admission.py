"""Admission control: limits concurrent requests, their bytes, and the backend's queue.

Runs before routing, so that a refused request costs neither a body nor a task. Does not know operations;
connections are limited by functions.local.server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.errors import BlitzError, Overloaded
from shared.observability.metrics import Telemetry

PROBES = ("/health", "/ready", "/metrics")
"""Polled every few seconds by machines. They bypass the limits: a busy instance is not dead, and its
metrics say why it is busy."""

SMALL_BYTES = 64 * 1024
"""Bytes of each request that are not counted; the number of requests bounds them. So large requests
cannot block small ones."""

RETRY_S = 1.0

_RESERVATION = "blitz.reservation"


class ChecksCapacity(Protocol):
    """The part of shared.backends.base.Backend that admission uses."""

    def check(self) -> None:
        """Raise Overloaded if a request would be refused now."""


class Admission:
    """Counts the requests of a process and the bytes reserved for them. For one event loop.

    max_requests: concurrent requests. max_bytes: of their bodies and responses, beyond SMALL_BYTES each.
    A request that is alone may exceed it, so that every allowed request can run.
    """

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.requests = 0
        self.reserved_bytes = 0

    def acquire(self) -> Reservation:
        """Admit one more request; release the reservation at its end. Raises Overloaded."""
        if self.requests >= self._max_requests:
            raise Overloaded(
                f"{self._max_requests} requests are in progress, the limit of this process: retry later",
                retry_after_s=RETRY_S,
            )
        self.requests += 1
        return Reservation(self)

    def reserve(self, size: int, *, held: int) -> None:
        """Reserve `size` more bytes for a request that has `held`. Raises Overloaded."""
        others = self.reserved_bytes - held
        if others and others + held + size > self._max_bytes:
            raise Overloaded(
                f"other requests hold {others} bytes of texts and vectors, and this one would exceed "
                f"the limit of {self._max_bytes}: retry later, or send less at once",
                retry_after_s=RETRY_S,
            )
        self.reserved_bytes += size

    def release(self, size: int) -> None:
        """Give back one request's place and `size` bytes."""
        self.requests -= 1
        self.reserved_bytes -= size


class Reservation:
    """The bytes reserved for one request."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._body_bytes = self._answer_bytes = self._counted = 0

    def reserve(self, *, body_bytes: int = 0, answer_bytes: int = 0) -> None:
        """Raise the reservation to these totals, known or expected. Raises Overloaded."""
        body = max(self._body_bytes, body_bytes)
        answer = max(self._answer_bytes, answer_bytes)
        more = body + answer - SMALL_BYTES - self._counted
        if more > 0:
            self._admission.reserve(more, held=self._counted)
            self._counted += more
        self._body_bytes, self._answer_bytes = body, answer

    def release(self) -> None:
        """Give back this request's place and all that it reserved."""
        self._admission.release(self._counted)


class Admitted:
    """ASGI middleware: passes on the requests that `admission` admits; answers 429 to others.

    backend: checked before the body of a request for it is read. asks_backend: whether a path's requests
    go to the backend. refuse: formats the error in the dialect of the path.
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
    """Reservation.reserve for a request that Admitted let in; others are not counted."""
    if (reservation := scope.get(_RESERVATION)) is not None:
        reservation.reserve(body_bytes=body_bytes, answer_bytes=answer_bytes)
