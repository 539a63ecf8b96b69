"""Calls to one backend: concurrency limit, circuit breaker, and the router's view of it.

Does not know other backends, or why a request is sent to this one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TypeVar

from shared.backends.base import Backend
from shared.cards import Device
from shared.context import deadline
from shared.errors import BackendFailed, BlitzError, DeadlineExceeded, Overloaded, Unavailable
from shared.observability.metrics import Telemetry
from shared.routing.breaker import Breaker
from shared.routing.policy import BackendView

AnyResult = TypeVar("AnyResult")


class Lane:
    """One of a process's backends. For one event loop at a time.

    concurrency: concurrent calls of this process; others wait in FIFO order. Parts of split requests use
    at most half of them, so that single texts do not wait behind thousands. None: no limit, for a
    backend in this process with its own queue. max_queue_s: a request with a longer expected wait is
    Overloaded at once. idle_s: the backend counts as scaled to zero this long after its last response;
    None: never. patience_s: shorter timeouts do not count as failures of the backend: the caller was
    impatient.
    """

    def __init__(
        self,
        device: Device,
        backend: Backend,
        *,
        concurrency: int | None,
        max_queue_s: float,
        idle_s: float | None,
        patience_s: float,
        metrics: Telemetry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.device = device
        self.backend = backend
        self._concurrency = concurrency
        self._max_queue_s = max_queue_s
        self._idle_s = idle_s
        self._patience_s = patience_s
        self._metrics = metrics
        self._clock = clock
        self._breaker = Breaker(clock=clock)
        self._queued_tokens = 0
        self._queued_requests = 0
        self._answered_at: float | None = None
        self._woken_at: float | None = None
        self._limiters: dict[asyncio.AbstractEventLoop, tuple[_Limiter, _Limiter]] = {}
        metrics.watch_backend(device, lambda: self._breaker.available)

    @property
    def is_remote(self) -> bool:
        """Whether calls leave this process."""
        return self._concurrency is not None

    @property
    def view(self) -> BackendView:
        """The routing policy's view of the backend."""
        now = self._clock()
        warm = self._idle_s is None or (
            self._answered_at is not None and now - self._answered_at < self._idle_s
        )
        waking_s = None if self._woken_at is None else now - self._woken_at
        return BackendView(
            self._breaker.available, warm, waking_s, self._queued_tokens, self._queued_requests
        )

    def check(self) -> None:
        """Raise Overloaded if a request would be refused now."""
        for limiter in self._limiters_of(is_part=False):
            limiter.check(self._max_queue_s)
        self.backend.check()

    @contextmanager
    def attempt(self, tokens: int, *, is_split: bool) -> Iterator[None]:
        """Enclose all calls of one request: together they count once for the circuit breaker.

        tokens: an estimate. Raises Unavailable while the circuit is open, and Overloaded.
        """
        for limiter in self._limiters_of(is_split):
            limiter.check(self._max_queue_s)
        self._breaker.admit()
        began = self._clock()
        self._queued_tokens += tokens
        self._queued_requests += 1
        try:
            yield
        except BlitzError as error:
            if not _is_outage(error):
                self._breaker.succeeded()  # a refusal is a response
            elif not isinstance(error, DeadlineExceeded) or self._had_time(began):
                self._breaker.failed()
            raise
        except asyncio.CancelledError:
            # By the deadline, or because the caller left, which says nothing about the backend.
            if deadline.is_over() and self._had_time(began):
                self._breaker.failed()
            raise
        else:
            self._breaker.succeeded()
        finally:
            self._queued_tokens -= tokens
            self._queued_requests -= 1

    async def call(
        self, ask: Callable[[Backend], Awaitable[AnyResult]], *, is_part: bool = False
    ) -> AnyResult:
        """`ask` the backend once a slot is free. is_part: of a request that was split."""
        async with self._room(is_part):
            outcome = "cancelled"
            try:
                result = await ask(self.backend)
                outcome = "ok"
                self._answered_at = self._clock()
            except BlitzError as error:
                outcome = error.code
                if not _is_outage(error):
                    self._answered_at = self._clock()
                raise
            except asyncio.CancelledError:
                if deadline.is_over():
                    outcome = DeadlineExceeded.code
                raise
            finally:
                self._metrics.backend_called(self.device, outcome)
        return result

    async def wake(self, wake: Callable[[], Awaitable[None]]) -> None:
        """Mark it as waking while `wake` runs, and as up afterwards. Raises what `wake` raises."""
        self._woken_at = self._clock()
        try:
            await wake()
            self._answered_at = self._clock()
            self._breaker.succeeded()
        finally:
            self._woken_at = None

    def _had_time(self, began: float) -> bool:
        return self._clock() - began >= self._patience_s

    @asynccontextmanager
    async def _room(self, is_part: bool) -> AsyncIterator[None]:
        async with AsyncExitStack() as places:
            for limiter in self._limiters_of(is_part):
                await places.enter_async_context(limiter.slot())
            yield

    def _limiters_of(self, is_part: bool) -> tuple[_Limiter, ...]:
        """The limiters that a call passes, in order."""
        if self._concurrency is None:
            return ()
        loop = asyncio.get_running_loop()
        if loop not in self._limiters:  # created lazily, because they belong to a loop
            parts = _Limiter(max(1, self._concurrency // 2), self._clock)
            self._limiters[loop] = parts, _Limiter(self._concurrency, self._clock)
        return self._limiters[loop] if is_part else self._limiters[loop][1:]


class _Limiter:
    """A FIFO semaphore of `places`, which estimates the wait."""

    def __init__(self, places: int, clock: Callable[[], float]) -> None:
        self._places = places
        self._clock = clock
        self._free = asyncio.Semaphore(places)
        self._waiting = 0
        self._mean_s = 0.0

    def check(self, max_wait_s: float) -> None:
        """Raise Overloaded if the expected wait exceeds `max_wait_s`; never if nobody waits."""
        excess_s = self._waiting * self._mean_s / self._places - max_wait_s
        if excess_s > 0:
            raise Overloaded(
                "too many requests are waiting: retry later", retry_after_s=min(60.0, max(1.0, excess_s))
            )

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        began = self._clock()
        try:
            yield
        finally:
            self._free.release()
            held_s = self._clock() - began
            self._mean_s += (held_s - self._mean_s) * (0.1 if self._mean_s else 1.0)


def _is_outage(error: BlitzError) -> bool:
    """Whether the error means that the backend is down; a model that fails to load does not."""
    return isinstance(error, BackendFailed | DeadlineExceeded) or type(error) is Unavailable
