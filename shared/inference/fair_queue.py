"""Which waiting request's micro-batch runs next: the pure state of the batcher, without threads or time.

Does not know who waits, which engine runs, or what a sequence holds.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence, Sized
from typing import Generic, Protocol, TypeVar

import msgspec

from shared.inference.schedule import LOOKAHEAD, Offer, choose, plan_batches


class Weighs(Protocol):
    """What is needed of a model to plan its batches."""

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of its micro-batches; 0: as many as all models'."""

    def text_bytes(self, tokens: int) -> int:
        """Memory that running one text of so many tokens takes; no less for a longer one."""


class Waiting(msgspec.Struct, eq=False):
    """A request in the queue. batches: what of `sequences` is not taken yet, as positions.

    virtual_time, order, is_begun: its place in the queue, which FairQueue sets.
    """

    model: Weighs
    sequences: Sequence[Sized]
    batches: deque[list[int]]
    virtual_time: float = 0.0
    order: int = 0
    is_begun: bool = False

    def __lt__(self, other: Waiting) -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[float, bool, int]:
        # At equal service the request that had nothing yet goes first.
        return self.virtual_time, self.is_begun, self.order

    def tokens(self, batch: list[int]) -> int:
        """Real tokens of a batch."""
        return sum(len(self.sequences[index]) for index in batch)

    def offer(self) -> Offer:
        """Its next batch, as `choose` compares it with others'."""
        batch = self.batches[0]
        longest = max(len(self.sequences[i]) for i in batch)
        text_bytes = self.model.text_bytes(longest)
        return Offer(self.model, len(batch), longest, self.tokens(batch), text_bytes)


WaitingT = TypeVar("WaitingT", bound=Waiting)


class MicroBatch(msgspec.Struct, Generic[WaitingT], frozen=True):
    """What runs at once. shares: requests and which of their sequences. memory_bytes: what it takes."""

    shares: list[tuple[WaitingT, list[int]]]
    memory_bytes: int


class FairQueue(Generic[WaitingT]):
    """The least served request goes next. Not thread-safe.

    Each request's virtual time is the padded tokens it was served. A new one starts at the queue's
    virtual time, which advances by service / waiting requests: so 5,000 texts do not starve one text
    behind them, nor does a stream of single texts starve them.

    budget_tokens, max_texts: a micro-batch's limits; a model may state tokens of its own. max_bytes:
    memory that all that run may take together; what would be too much beside others waits until they
    have ended, and nothing overtakes it.
    queued_tokens: real tokens that wait.
    """

    def __init__(self, *, budget_tokens: int, max_texts: int, max_bytes: int) -> None:
        self.queued_tokens = 0
        self._budget_tokens = budget_tokens
        self._max_texts = max_texts
        self._max_bytes = max_bytes
        self._heap: list[WaitingT] = []
        self._running_bytes = 0
        self._virtual_time = 0.0
        self._orders = 0

    def __bool__(self) -> bool:
        """Whether a request may wait; one that was dropped counts until its turn comes."""
        return bool(self._heap)

    def plan(self, model: Weighs, lengths: Sequence[int]) -> deque[list[int]]:
        """The micro-batches of a request with sequences of these lengths. Reads only the limits."""
        return deque(
            plan_batches(
                lengths,
                budget_tokens=self._tokens_for(model),
                max_texts=self._max_texts,
                max_bytes=self._max_bytes,
                text_bytes=model.text_bytes,
            )
        )

    def put(self, request: WaitingT) -> None:
        """Let it wait, behind those that were served as little."""
        self._orders += 1
        request.virtual_time, request.order = self._virtual_time, self._orders
        heapq.heappush(self._heap, request)
        self.queued_tokens += sum(map(len, request.sequences))

    def take(self) -> MicroBatch[WaitingT] | None:
        """What runs next; None if nothing waits, or what is next has to wait for memory."""
        requests = self._next()
        if not requests:
            return None
        offers = [request.offer() for request in requests]
        free_bytes = self._max_bytes - self._running_bytes
        if self._running_bytes and offers[0].texts * offers[0].text_bytes > free_bytes:
            self._put_back(requests)
            return None
        active = len(requests) + len(self._heap)
        chosen = choose(
            offers,
            budget_tokens=self._tokens_for(requests[0].model),
            max_texts=self._max_texts,
            max_bytes=free_bytes,
        )
        shares = [(requests[position], requests[position].batches.popleft()) for position in chosen]
        longest = max(offers[position].longest for position in chosen)
        for request, batch in shares:
            self._virtual_time += longest * len(batch) / active
            request.virtual_time += longest * len(batch)
            request.is_begun = True
            self.queued_tokens -= request.tokens(batch)
        self._put_back(requests)
        texts = sum(len(batch) for _, batch in shares)
        memory_bytes = texts * max(offers[position].text_bytes for position in chosen)
        self._running_bytes += memory_bytes
        return MicroBatch(shares, memory_bytes)

    def ended(self, batch: MicroBatch[WaitingT]) -> None:
        """It runs no more: its memory is free."""
        self._running_bytes -= batch.memory_bytes

    def drop(self, request: WaitingT) -> None:
        """Nothing more of it is taken."""
        self.queued_tokens -= sum(map(request.tokens, request.batches))
        request.batches.clear()

    def waiting(self) -> list[WaitingT]:
        """All requests of which something waits, in no order."""
        return [request for request in self._heap if request.batches]

    def _tokens_for(self, model: Weighs) -> int:
        return model.batch_tokens or self._budget_tokens

    def _next(self) -> list[WaitingT]:
        """Those whose turn it is, in order, out of the heap: no more than could share a micro-batch."""
        requests: list[WaitingT] = []
        while self._heap and len(requests) < LOOKAHEAD:
            request = heapq.heappop(self._heap)
            if request.batches:  # a dropped one stays in the heap until its turn
                requests.append(request)
                first = requests[0].offer()
                if (first.texts + 1) * first.longest > self._tokens_for(requests[0].model):
                    break  # full already: nothing can join
        return requests

    def _put_back(self, requests: Sequence[WaitingT]) -> None:
        for request in requests:
            if request.batches:
                heapq.heappush(self._heap, request)
