"""The queue, without threads: what is taken, in which order, within which limits."""

from __future__ import annotations

from dataclasses import dataclass

from shared.inference.fair_queue import FairQueue, MicroBatch, Waiting


@dataclass
class Model:
    bytes_per_token: int = 0
    batch_tokens: int = 0

    def text_bytes(self, tokens: int) -> int:
        return tokens * self.bytes_per_token


MODEL = Model()


def queue_of(*, max_bytes: int = 1000) -> FairQueue[Waiting]:
    """A micro-batch has 8 padded tokens and 4 texts at most."""
    return FairQueue(budget_tokens=8, max_texts=4, max_bytes=max_bytes)


def put(queue: FairQueue[Waiting], *lengths: int, model: Model = MODEL) -> Waiting:
    """A request with sequences of these lengths."""
    request = Waiting(model, [range(length) for length in lengths], queue.plan(model, lengths))
    queue.put(request)
    return request


def taken(queue: FairQueue[Waiting]) -> list[Waiting]:
    """Whose sequences the next micro-batch has, which runs and ends; none if nothing can run."""
    batch = queue.take()
    if batch is None:
        return []
    queue.ended(batch)
    return [request for request, _ in batch.shares]


def test_a_large_request_does_not_starve_a_single_text() -> None:
    """A text that comes behind 5,000 is in the very next batch."""
    queue = queue_of()
    large = put(queue, *[4] * 5000)
    assert taken(queue) == [large]
    single = put(queue, 8)
    assert taken(queue) == [single]
    assert taken(queue) == [large]


def test_a_stream_of_single_texts_does_not_starve_a_large_request() -> None:
    """With a new full-sized single before each batch: it ends, and singles had most batches."""
    queue = queue_of()
    large = put(queue, *[8] * 6)
    batches = 0
    while large.batches and batches < 100:
        put(queue, 8)
        taken(queue)
        batches += 1
    assert 12 < batches < 100


def test_small_requests_share_a_micro_batch_with_their_own_model_only() -> None:
    """In the order they came."""
    queue, other = queue_of(), Model()
    first, foreign, second = put(queue, 2), put(queue, 2, model=other), put(queue, 2)
    assert taken(queue) == [first, second]
    assert taken(queue) == [foreign]
    assert taken(queue) == []


def test_a_model_may_state_how_much_runs_at_once() -> None:
    """For a request of its own, and for those that join it; others keep to the queue's limit."""
    queue, large, small = queue_of(), Model(batch_tokens=12), Model(batch_tokens=4)
    whole, joining = put(queue, 4, 4, model=large), put(queue, 4, model=large)
    assert taken(queue) == [whole, joining]
    put(queue, 2, 2, 2, model=small)
    assert [len(taken(queue)) for _ in range(3)] == [1, 1, 0]
    usual = put(queue, 4, 4, 4)
    assert [taken(queue), taken(queue), taken(queue)] == [[usual], [usual], []]


def test_positions_are_of_the_request_s_own_sequences() -> None:
    """Longest first within the request, whatever it shares a batch with."""
    queue = queue_of()
    long = put(queue, 1, 2, 8)
    short = put(queue, 2)
    batches = []
    while (batch := queue.take()) is not None:
        batches.append([(request is long, positions) for request, positions in batch.shares])
    assert batches == [[(True, [2])], [(False, [0]), (True, [1, 0])]]
    assert not short.batches


def test_what_waits_is_counted_until_it_is_taken_or_dropped() -> None:
    """In real tokens, and a dropped request is passed over."""
    queue = queue_of()
    left, stays = put(queue, 8, 8), put(queue, 3)
    assert queue.queued_tokens == 19
    queue.drop(left)
    assert queue.queued_tokens == 3
    assert queue.waiting() == [stays]
    assert taken(queue) == [stays]
    assert (queue.queued_tokens, bool(queue), taken(queue)) == (0, False, [])


def test_what_runs_keeps_within_the_memory() -> None:
    """What has no room beside others waits for them, and a small one does not overtake it."""
    queue, model = queue_of(max_bytes=100), Model(bytes_per_token=10)
    put(queue, 6, model=model)
    running = queue.take()
    large, small = put(queue, 8, model=model), put(queue, 1, model=model)
    assert isinstance(running, MicroBatch)
    assert running.memory_bytes == 60
    assert queue.take() is None
    assert queue.waiting() == [large, small]
    queue.ended(running)
    assert taken(queue) == [large]
    assert taken(queue) == [small]


def test_what_has_room_runs_beside_others() -> None:
    """Up to the last byte; and alone whatever it takes."""
    queue, model = queue_of(max_bytes=100), Model(bytes_per_token=10)
    for length in (6, 4):
        put(queue, length, model=model)
        assert queue.take() is not None
    put(queue, 1, model=model)
    assert queue.take() is None
    alone = queue_of(max_bytes=100)
    put(alone, 11, model=model)
    assert alone.take() is not None
