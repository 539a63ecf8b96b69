"""Many callers' sequences through few engine threads, in shared micro-batches, fairly.

Does not know texts, tokenizers, HTTP or which engine runs. What makes a micro-batch is decided in
`shared.inference.schedule`; `Batcher` adds threads and an asyncio front.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from shared.contracts import FloatMatrix
from shared.errors import BlitzError, EmptyInput, Overloaded, Unavailable
from shared.inference.schedule import LOOKAHEAD, Offer, choose, plan_batches
from shared.observability import metrics
from shared.observability.metrics import Telemetry

_log = logging.getLogger(__name__)


class Runs(Protocol):
    """What a batch runs on; `shared.inference.model.Model` is one. Called from many threads at once."""

    def text_bytes(self, tokens: int) -> int:
        """Memory that running one text of so many tokens takes; no less for a longer one."""

    def run(self, sequences: Sequence[Any]) -> FloatMatrix:
        """B sequences -> (B, D) float32."""


@dataclass(frozen=True, slots=True)
class Batched:
    """rows: (N, D) float32 in input order. queue_s: until the first batch started, inference_s: the
    rest of the wall time, both in seconds."""

    rows: FloatMatrix
    queue_s: float
    inference_s: float


@dataclass(eq=False, slots=True)
class Reservation:
    """A request that is let in and not yet submitted. tokens: about so many; 0 once it is submitted."""

    tokens: int


@dataclass(eq=False, slots=True)
class _Ticket:
    """One submitted request. `done` is resolved when nothing of it is queued or running any more."""

    model: Runs
    sequences: Sequence[Sized]
    waiting: deque[list[int]]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]
    virtual_time: float
    order: int
    submitted: float = field(default_factory=time.perf_counter)
    started: float | None = None
    running: int = 0
    rows: FloatMatrix | None = None
    error: BlitzError | None = None

    def __lt__(self, other: _Ticket) -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[float, bool, int]:
        # At equal service the request that had nothing yet goes first.
        return self.virtual_time, self.started is not None, self.order

    def tokens(self, batch: list[int]) -> int:
        return sum(len(self.sequences[index]) for index in batch)

    def offer(self) -> Offer:
        batch = self.waiting[0]
        longest = max(len(self.sequences[i]) for i in batch)
        text_bytes = self.model.text_bytes(longest)
        return Offer(self.model, len(batch), longest, self.tokens(batch), text_bytes)


_Part = tuple[_Ticket, list[int]]


@dataclass(frozen=True, slots=True)
class _Taken:
    """A micro-batch that a thread has taken. memory_bytes: what running it takes."""

    parts: list[_Part]
    memory_bytes: int


class Batcher:
    """One per process, shared by all models: `threads` daemon threads take the next micro-batch.

    Fair queueing: each request's virtual time is the padded tokens it was served; the least served
    goes next. A new one starts at the process's virtual time, which advances by service / waiting
    requests: so 5,000 texts do not starve one text behind them, nor a stream of single texts them.

    budget_tokens, max_texts: a micro-batch's limits. max_bytes: memory that all under way may take
    together; what would be too much beside others waits until they have ended, and nothing overtakes
    it. max_wait_s: how long a free thread waits for a
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
        self._max_texts = max_texts
        self._max_bytes = max_bytes
        self._max_wait_s = max_wait_s
        self._max_queue_tokens = max_queue_tokens
        self._max_queue_s = max_queue_s
        self._changed = threading.Condition()
        self._heap: list[_Ticket] = []
        self._queued_tokens = 0
        self._reserved_tokens = 0
        self._running_bytes = 0
        self._clock = 0.0
        self._orders = 0
        self._closed = False
        self._tokens_per_s = 0.0
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
        return self._queued_tokens

    def check(self) -> None:
        """Raise what `reserve` would raise now: Overloaded, Unavailable."""
        with self._changed:
            self._check()

    @contextlib.contextmanager
    def reserve(self, tokens: int) -> Iterator[Reservation]:
        """A place in the queue for a request as a whole, before work is spent on it; `submit` takes it.

        tokens: an estimate, which counts as waiting until then. Raises Overloaded (with retry_after_s)
        by what waits already, and not by what comes: any size gets its turn. Unavailable after `close`.
        """
        with self._changed:
            self._check()
            self._reserved_tokens += tokens
        reservation = Reservation(tokens)
        try:
            yield reservation
        finally:
            with self._changed:
                self._take_place(reservation)

    async def submit(self, model: Runs, sequences: Sequence[Sized], reservation: Reservation) -> Batched:
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
            for ticket in self._heap:
                self._fail(ticket, Unavailable("the service is shutting down"))
            self._heap.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _enqueue(self, model: Runs, sequences: Sequence[Sized], reservation: Reservation) -> _Ticket:
        loop = asyncio.get_running_loop()
        lengths = [len(ids) for ids in sequences]
        batches = plan_batches(
            lengths,
            budget_tokens=self._budget_tokens,
            max_texts=self._max_texts,
            max_bytes=self._max_bytes,
            text_bytes=model.text_bytes,
        )
        total = sum(lengths)
        with self._changed:
            self._check_open()
            self._take_place(reservation)
            self._orders += 1
            ticket = _Ticket(
                model, sequences, deque(batches), loop, loop.create_future(), self._clock, self._orders
            )
            heapq.heappush(self._heap, ticket)
            self._queued_tokens += total
            self._changed.notify_all()
        return ticket

    def _take_place(self, reservation: Reservation) -> None:
        """Under the lock: it counts no more as waiting. Again, it has no effect."""
        self._reserved_tokens -= reservation.tokens
        reservation.tokens = 0

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the service is shutting down")

    def _check(self) -> None:
        """Under the lock."""
        self._check_open()
        excess = self._queued_tokens + self._reserved_tokens - self._room_tokens()
        if excess > 0:
            raise Overloaded(
                "too many requests are waiting: retry later", retry_after_s=self._drain_s(excess)
            )

    def _room_tokens(self) -> float:
        """How many tokens may wait; before the first batch the rate, and so the time, is unknown."""
        rate = self._tokens_per_s * len(self._threads)
        return min(self._max_queue_tokens, rate * self._max_queue_s or self._max_queue_tokens)

    def _drain_s(self, tokens: float) -> float:
        """Seconds until `tokens` are worked off at the recent rate: 1 to 60."""
        rate = self._tokens_per_s * len(self._threads)
        return min(60.0, max(1.0, tokens / rate)) if rate else 1.0

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            self._run(taken.parts)
            with self._changed:
                self._running_bytes -= taken.memory_bytes
                self._changed.notify_all()

    def _take(self) -> _Taken | None:
        """Block until there is a micro-batch to run; None when closed."""
        with self._changed:
            while not self._closed:
                if not self._heap:
                    self._changed.wait()
                    continue
                self._wait_for_more()
                taken = self._pop()
                if taken is not None:
                    return taken
            return None

    def _wait_for_more(self) -> None:
        if self._max_wait_s:
            self._changed.wait_for(
                lambda: self._closed or not self._heap or self._queued_tokens >= self._budget_tokens,
                timeout=self._max_wait_s,
            )

    def _pop(self) -> _Taken | None:
        """None if nothing waits, or what is next had to wait for memory: look again."""
        tickets: list[_Ticket] = []
        while self._heap and len(tickets) < LOOKAHEAD:
            ticket = heapq.heappop(self._heap)
            if ticket.waiting:  # a dropped ticket stays in the heap until it comes up
                tickets.append(ticket)
                first = tickets[0].offer()
                if (first.texts + 1) * first.longest > self._budget_tokens:
                    break  # full already: nothing can join
        if not tickets:
            return None
        offers = [ticket.offer() for ticket in tickets]
        free_bytes = self._max_bytes - self._running_bytes
        if self._running_bytes and offers[0].texts * offers[0].text_bytes > free_bytes:
            for ticket in tickets:
                heapq.heappush(self._heap, ticket)
            self._changed.wait()
            return None
        active = len(tickets) + len(self._heap)
        chosen = choose(
            offers,
            budget_tokens=self._budget_tokens,
            max_texts=self._max_texts,
            max_bytes=free_bytes,
        )
        parts = [(tickets[position], tickets[position].waiting.popleft()) for position in chosen]
        longest = max(len(ticket.sequences[i]) for ticket, batch in parts for i in batch)
        for ticket, batch in parts:
            self._clock += longest * len(batch) / active
            ticket.virtual_time += longest * len(batch)
            ticket.started = ticket.started or time.perf_counter()
            ticket.running += 1
            self._queued_tokens -= ticket.tokens(batch)
        for ticket in tickets:
            if ticket.waiting:
                heapq.heappush(self._heap, ticket)
        texts = sum(len(batch) for _, batch in parts)
        memory_bytes = texts * max(offers[position].text_bytes for position in chosen)
        self._running_bytes += memory_bytes
        return _Taken(parts, memory_bytes)

    def _run(self, parts: list[_Part]) -> None:
        """Run a micro-batch; when one that callers share fails, each caller's part again by itself."""
        error = self._attempt(parts)
        if error is not None and len(parts) > 1:
            for part in parts:
                self._settle_part([part], self._attempt([part]))
        else:
            self._settle_part(parts, error)

    def _attempt(self, parts: list[_Part]) -> Exception | None:
        sequences = [ticket.sequences[index] for ticket, batch in parts for index in batch]
        self._metrics.batch_ran(
            texts=len(sequences), padded_tokens=len(sequences) * max(map(len, sequences))
        )
        tokens = sum(map(len, sequences))
        with self._changed:
            # What ran alone and small says little of how fast a queue drains.
            tells_rate = bool(self._heap) or 2 * tokens >= self._budget_tokens
        began = time.perf_counter()
        try:
            rows = parts[0][0].model.run(sequences)
            if rows.shape[0] != len(sequences):
                raise ValueError("the model returned another number of rows than it was given")
            self._deliver(parts, rows)
        except Exception as error:  # an engine may raise anything; the thread has to live on
            # Without its message: that may quote an input.
            frames = "".join(traceback.format_tb(error.__traceback__))
            _log.error("a micro-batch failed: %s\n%s", type(error).__qualname__, frames)
            return error
        rate = tokens / max(time.perf_counter() - began, 1e-6)
        if tells_rate:
            with self._changed:
                self._tokens_per_s += (rate - self._tokens_per_s) * (0.1 if self._tokens_per_s else 1.0)
        return None

    def _settle_part(self, parts: list[_Part], error: Exception | None) -> None:
        with self._changed:
            for ticket, _ in parts:
                if error is not None:
                    self._fail(ticket, _public(error))
                ticket.running -= 1
                self._settle(ticket)

    def _deliver(self, parts: list[_Part], rows: FloatMatrix) -> None:
        start = 0
        for ticket, batch in parts:
            with self._changed:
                if ticket.rows is None:
                    ticket.rows = np.empty((len(ticket.sequences), rows.shape[1]), np.float32)
            ticket.rows[batch] = rows[start : start + len(batch)]
            start += len(batch)

    def _drop(self, ticket: _Ticket) -> None:
        with self._changed:
            self._fail(ticket, Unavailable("the caller left"))

    def _fail(self, ticket: _Ticket, error: BlitzError) -> None:
        """Under the lock: nothing more of `ticket` is run; its first error stays."""
        ticket.error = ticket.error or error
        self._queued_tokens -= sum(map(ticket.tokens, ticket.waiting))
        ticket.waiting.clear()
        self._settle(ticket)

    def _settle(self, ticket: _Ticket) -> None:
        """Under the lock: tell the caller once nothing of the ticket is queued or running."""
        if ticket.waiting or ticket.running:
            return
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
            ticket.loop.call_soon_threadsafe(_resolve, ticket.done)


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _public(error: Exception) -> BlitzError:
    """A new error for each caller: one object raised in several tasks mixes their tracebacks."""
    if isinstance(error, BlitzError):
        return type(error)(error.message, field=error.field, retry_after_s=error.retry_after_s)
    return BlitzError("the model failed on this input")
