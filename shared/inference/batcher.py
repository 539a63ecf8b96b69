"""Many callers' sequences through few engine threads, in shared micro-batches, fairly.

Adds threads and an asyncio front to two pure modules: shared.inference.fair_queue says what runs next,
shared.inference.backlog how much may wait. Does not know texts, tokenizers, HTTP or which engine runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence, Sized
from typing import Any, Protocol

import msgspec
import numpy as np

from shared.contracts import FloatMatrix
from shared.engines.base import Rows
from shared.errors import BlitzError, EmptyInput, Unavailable
from shared.inference.backlog import Backlog, TokenReservation
from shared.inference.fair_queue import FairQueue, MicroBatch, Waiting, Weighs
from shared.observability import metrics
from shared.observability.logs import log_failure
from shared.observability.metrics import Telemetry

_log = logging.getLogger(__name__)


class Runs(Weighs, Protocol):
    """What a batch runs on; `shared.inference.model.Model` is one. Called from many threads at once."""

    def run(self, sequences: Sequence[Any]) -> Rows:
        """B sequences -> (B, D) float32, or a list of what each of them has."""


class Batched(msgspec.Struct, frozen=True):
    """rows: (N, D) float32 in input order, or a list in that order. queue_s: until the first batch
    started, inference_s: the rest of the wall time, both in seconds."""

    rows: Rows
    queue_s: float
    inference_s: float


class _Ticket(Waiting, eq=False, kw_only=True):
    """One submitted request. `done` is resolved when nothing of it is queued or running any more."""

    model: Runs
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]
    submitted: float = msgspec.field(default_factory=time.perf_counter)
    started: float | None = None
    running: int = 0
    rows: FloatMatrix | list[Any] | None = None
    error: BlitzError | None = None


_Share = tuple[_Ticket, list[int]]


class Batcher:
    """One per process, shared by all models: `threads` daemon threads run the next micro-batch.

    budget_tokens, max_texts, max_bytes: see FairQueue. max_wait_s: how long a free thread waits for a
    fuller batch; 0 never waits. max_queue_tokens, max_queue_s: waiting tokens, and the seconds they are
    expected to take, beyond which `reserve` raises Overloaded.
    """

    def __init__(
        self,
        *,
        threads: int,
        budget_tokens: int,
        max_texts: int,
        max_bytes: int,
        max_wait_s: float,
        max_queue_tokens: int,
        max_queue_s: float,
        metrics: Telemetry = metrics.PROCESS,
    ) -> None:
        self._metrics = metrics
        self._budget_tokens = budget_tokens
        self._max_bytes = max_bytes
        self._max_wait_s = max_wait_s
        self._changed = threading.Condition()
        self._queue: FairQueue[_Ticket] = FairQueue(
            budget_tokens=budget_tokens, max_texts=max_texts, max_bytes=max_bytes
        )
        self._backlog = Backlog(threads=threads, max_tokens=max_queue_tokens, max_s=max_queue_s)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher-{index}", daemon=True)
            for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def max_bytes(self) -> int:
        """Memory that running models may take."""
        return self._max_bytes

    @property
    def queued_tokens(self) -> int:
        """Real tokens accepted and not yet given to an engine."""
        return self._queue.queued_tokens

    def check(self) -> None:
        """Raise what `reserve` would raise now: Overloaded, Unavailable."""
        with self._changed:
            self._check()

    @contextlib.contextmanager
    def reserve(self, tokens: int) -> Iterator[TokenReservation]:
        """A place in the queue for a request as a whole, before work is spent on it; `submit` takes it.

        tokens: an estimate, which counts as waiting until then. Raises Overloaded (with retry_after_s)
        by what waits already, and not by what comes: any size gets its turn. Unavailable after `close`.
        """
        with self._changed:
            self._check()
            reservation = self._backlog.reserve(tokens)
        try:
            yield reservation
        finally:
            with self._changed:
                self._backlog.release(reservation)

    async def submit(
        self, model: Runs, sequences: Sequence[Sized], reservation: TokenReservation
    ) -> Batched:
        """Run `sequences` through `model`, which must stay usable until this returns or raises.

        Raises Unavailable after `close`, EmptyInput, and what model.run raises (anything that is no
        BlitzError becomes one). When cancelled, it drops what is queued and leaves only after the
        batches already running have ended.
        """
        if not sequences:
            raise EmptyInput("there is nothing to run", field="input")
        ticket = self._enqueue(model, sequences, reservation)
        try:
            await asyncio.shield(ticket.done)
        except asyncio.CancelledError:
            self._drop(ticket)
            while not ticket.done.done():
                # The caller's lease on the model must outlive the running batch.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(ticket.done)
            raise
        if ticket.error is not None:
            raise ticket.error
        assert ticket.rows is not None
        assert ticket.started is not None
        ended = time.perf_counter()
        return Batched(ticket.rows, ticket.started - ticket.submitted, ended - ticket.started)

    def close(self) -> None:
        """Fail what is queued with Unavailable, let running batches end, stop the threads."""
        with self._changed:
            self._closed = True
            for ticket in self._queue.waiting():
                self._fail(ticket, Unavailable("the service is shutting down"))
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _enqueue(
        self, model: Runs, sequences: Sequence[Sized], reservation: TokenReservation
    ) -> _Ticket:
        loop = asyncio.get_running_loop()
        batches = self._queue.plan(model, [len(ids) for ids in sequences])  # outside of the lock
        ticket = _Ticket(
            model=model,
            sequences=sequences,
            batches=batches,
            loop=loop,
            done=loop.create_future(),
        )
        with self._changed:
            self._check_open()
            self._backlog.release(reservation)
            self._queue.put(ticket)
            self._changed.notify_all()
        return ticket

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the service is shutting down")

    def _check(self) -> None:
        """Under the lock."""
        self._check_open()
        self._backlog.check(self._queue.queued_tokens)

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            self._run(batch.shares)
            with self._changed:
                self._queue.ended(batch)
                self._changed.notify_all()

    def _take(self) -> MicroBatch[_Ticket] | None:
        """Block until there is a micro-batch to run; None when closed."""
        with self._changed:
            while True:
                self._wait_for_more()
                if self._closed:
                    return None
                batch = self._queue.take()
                if batch is not None:
                    now = time.perf_counter()
                    for ticket, _ in batch.shares:
                        ticket.started = ticket.started or now
                        ticket.running += 1
                    return batch
                self._changed.wait()

    def _wait_for_more(self) -> None:
        if self._max_wait_s:
            self._changed.wait_for(
                lambda: (
                    self._closed or not self._queue or self._queue.queued_tokens >= self._budget_tokens
                ),
                timeout=self._max_wait_s,
            )

    def _run(self, shares: list[_Share]) -> None:
        """Run a micro-batch; when one that callers share fails, each caller's share again by itself."""
        error = self._attempt(shares)
        if error is not None and len(shares) > 1:
            for share in shares:
                self._settle_shares([share], self._attempt([share]))
        else:
            self._settle_shares(shares, error)

    def _attempt(self, shares: list[_Share]) -> Exception | None:
        sequences = [ticket.sequences[index] for ticket, batch in shares for index in batch]
        self._metrics.batch_ran(
            texts=len(sequences), padded_tokens=len(sequences) * max(map(len, sequences))
        )
        tokens = sum(map(len, sequences))
        with self._changed:
            # What ran alone and small says little of how fast a queue drains.
            tells_rate = bool(self._queue) or 2 * tokens >= self._budget_tokens
        began = time.perf_counter()
        try:
            rows = shares[0][0].model.run(sequences)
            if len(rows) != len(sequences):
                raise ValueError("the model returned another number of rows than it was given")
            self._deliver(shares, rows)
        except Exception as error:  # an engine may raise anything; the thread has to live on
            log_failure(_log, "a micro-batch failed", error)
            return error
        if tells_rate:
            seconds = time.perf_counter() - began
            with self._changed:
                self._backlog.ran(tokens, seconds)
        return None

    def _settle_shares(self, shares: list[_Share], error: Exception | None) -> None:
        with self._changed:
            for ticket, _ in shares:
                if error is not None:
                    self._fail(ticket, _public(error))
                ticket.running -= 1
                self._settle(ticket)

    def _deliver(self, shares: list[_Share], rows: Rows) -> None:
        start = 0
        for ticket, batch in shares:
            with self._changed:
                if ticket.rows is None:
                    ticket.rows = _room_for(len(ticket.sequences), rows)
            some = rows[start : start + len(batch)]
            if isinstance(ticket.rows, list):
                for index, row in zip(batch, some, strict=True):
                    ticket.rows[index] = row
            else:
                ticket.rows[batch] = some
            start += len(batch)

    def _drop(self, ticket: _Ticket) -> None:
        with self._changed:
            self._fail(ticket, Unavailable("the caller left"))

    def _fail(self, ticket: _Ticket, error: BlitzError) -> None:
        """Under the lock: nothing more of `ticket` is run; its first error stays."""
        ticket.error = ticket.error or error
        self._queue.drop(ticket)
        self._settle(ticket)

    def _settle(self, ticket: _Ticket) -> None:
        """Under the lock: tell the caller once nothing of the ticket is queued or running."""
        if ticket.batches or ticket.running:
            return
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
            ticket.loop.call_soon_threadsafe(_resolve, ticket.done)


def _room_for(count: int, rows: Rows) -> FloatMatrix | list[Any]:
    """For the rows of `count` sequences, of which these are some."""
    return [None] * count if isinstance(rows, list) else np.empty((count, rows.shape[1]), np.float32)


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _public(error: Exception) -> BlitzError:
    """A new error for each caller: one object raised in several tasks mixes their tracebacks."""
    if isinstance(error, BlitzError):
        return type(error)(error.message, field=error.field, retry_after_s=error.retry_after_s)
    return BlitzError("the model failed on this input")
