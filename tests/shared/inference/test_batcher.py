"""The Batcher, with models that a test can hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from shared.contracts import FloatMatrix
from shared.errors import BlitzError, EmptyInput, InvalidInput, Overloaded, Unavailable
from shared.inference.batcher import Batched, Batcher, Runs
from shared.observability.metrics import Telemetry
from tests.fakes.models import POISON, HeldModel
from tests.patience import PATIENCE_S


@contextmanager
def batcher(
    *,
    threads: int = 1,
    budget_tokens: int = 8,
    max_texts: int = 4,
    max_bytes: int = 1000,
    max_wait_s: float = 0.0,
    max_queue_tokens: int = 1000,
    max_queue_s: float = 1e9,
    metrics: Telemetry | None = None,
) -> Iterator[Batcher]:
    made = Batcher(
        threads=threads,
        budget_tokens=budget_tokens,
        max_texts=max_texts,
        max_bytes=max_bytes,
        max_wait_s=max_wait_s,
        max_queue_tokens=max_queue_tokens,
        max_queue_s=max_queue_s,
        metrics=metrics or Telemetry(CollectorRegistry()),
    )
    try:
        yield made
    finally:
        made.close()


async def entered(model: HeldModel) -> None:
    """Wait until the model has been given one more batch."""
    assert await asyncio.to_thread(model.entered.acquire, timeout=PATIENCE_S)


async def submit(batches: Batcher, model: Runs, sequences: list[list[int]]) -> Batched:
    """As a request comes: let in, then run."""
    with batches.reserve(0) as reservation:
        return await batches.submit(model, sequences, reservation)


def check(batches: Batcher) -> None:
    """Whether another request would be let in. Raises Overloaded."""
    with batches.reserve(0):
        pass


def start(batches: Batcher, model: HeldModel, sequences: list[list[int]]) -> asyncio.Task[Batched]:
    return asyncio.create_task(submit(batches, model, sequences))


async def queued(batches: Batcher, tokens: int) -> None:
    """Wait until exactly `tokens` are queued."""
    while batches.queued_tokens != tokens:  # noqa: ASYNC110 - threads change it, no event tells
        await asyncio.sleep(0.001)


async def one_running_one_waiting(
    batches: Batcher, model: HeldModel
) -> tuple[asyncio.Task[Batched], asyncio.Task[Batched]]:
    """Two requests of 8 tokens; the model, which has run before, is held until its gate opens."""
    model.gate.clear()
    for _ in model.calls:
        await entered(model)
    running = start(batches, model, [[2] * 8])
    await entered(model)
    waiting = start(batches, model, [[3] * 8])
    await queued(batches, 8)
    return running, waiting


@pytest.mark.anyio
async def test_vectors_come_back_in_input_order() -> None:
    """Sorting by length and splitting into batches does not show."""
    model = HeldModel()
    sequences = [[n] * (1 + n % 5) for n in range(1, 40)]
    with batcher(threads=2) as batches:
        result = await submit(batches, model, sequences)
    assert result.rows.dtype == np.float32
    assert result.rows.tolist() == [[ids[0], len(ids)] for ids in sequences]
    assert len(model.calls) > 5
    assert result.queue_s >= 0
    assert result.inference_s > 0


@pytest.mark.anyio
async def test_callers_share_a_micro_batch() -> None:
    """While the thread is busy, single texts of several callers gather into one batch."""
    model = HeldModel(held=True)
    with batcher() as batches:
        first = start(batches, model, [[1] * 8])
        await entered(model)
        singles = [start(batches, model, [[n, n]]) for n in (2, 3, 4)]
        await queued(batches, 6)
        model.gate.set()
        results = await asyncio.gather(first, *singles)
    assert sorted(model.calls[1]) == [[2, 2], [3, 3], [4, 4]]
    assert [r.rows[0, 0] for r in results] == [1, 2, 3, 4]


@pytest.mark.anyio
async def test_models_do_not_share_a_micro_batch() -> None:
    """Texts for two models that wait together run apart."""
    one, other = HeldModel(held=True), HeldModel()
    with batcher() as batches:
        tasks = [start(batches, one, [[1]])]
        await entered(one)
        tasks += [start(batches, one, [[2]]), start(batches, other, [[3]])]
        await queued(batches, 2)
        one.gate.set()
        await asyncio.gather(*tasks)
    assert one.calls == [[[1]], [[2]]]
    assert other.calls == [[[3]]]


@pytest.mark.anyio
async def test_a_full_queue_refuses_with_a_time_to_retry() -> None:
    """With more than max_queue_tokens waiting: Overloaded; what waits already is served."""
    model = HeldModel(held=True)
    with batcher(max_queue_tokens=10) as batches:
        tasks = [start(batches, model, [[1]])]
        await entered(model)
        tasks.append(start(batches, model, [[2] * 8]))
        await queued(batches, 8)
        check(batches)
        tasks.append(start(batches, model, [[3] * 3]))
        await queued(batches, 11)
        with pytest.raises(Overloaded):
            check(batches)
        with pytest.raises(Overloaded) as refused:
            await submit(batches, model, [[4]])
        assert refused.value.retry_after_s is not None
        assert 1 <= refused.value.retry_after_s <= 60
        model.gate.set()
        await asyncio.gather(*tasks)
        assert batches.queued_tokens == 0


@pytest.mark.anyio
async def test_who_was_let_in_counts_as_waiting_and_is_not_refused_later() -> None:
    """From before it is tokenised, by an estimate, until it is submitted, or fails before that."""
    model = HeldModel(held=True)
    with batcher(max_queue_tokens=10) as batches:
        tasks = [start(batches, model, [[1]])]
        await entered(model)
        with batches.reserve(11), pytest.raises(Overloaded):
            check(batches)
        with batches.reserve(5) as early:
            tasks.append(start(batches, model, [[2] * 6]))
            await queued(batches, 6)
            with pytest.raises(Overloaded):
                check(batches)
            tasks.append(asyncio.create_task(batches.submit(model, [[3] * 6], early)))
            await queued(batches, 12)
            model.gate.set()
            await asyncio.gather(*tasks)
        check(batches)


@pytest.mark.anyio
async def test_a_request_alone_is_accepted_however_large() -> None:
    """A limit below one request must not make that request impossible for ever."""
    with batcher(max_queue_tokens=10) as batches:
        result = await submit(batches, HeldModel(), [[1] * 30, [2] * 30])
    assert result.rows.shape == (2, 2)


@pytest.mark.anyio
async def test_a_cancelled_callers_queued_batches_never_run() -> None:
    """They leave the queue at once; the caller leaves after its running batch has ended."""
    model = HeldModel(held=True)
    with batcher() as batches:
        task = start(batches, model, [[1] * 8, [2] * 8, [3] * 8])
        await entered(model)
        task.cancel()
        await queued(batches, 0)
        assert not task.done()  # the model is in use: its lease must not end yet
        model.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await submit(batches, model, [[4]])
    assert model.calls == [[[1] * 8], [[4]]]


@pytest.mark.anyio
async def test_a_failing_batch_fails_its_callers_only() -> None:
    """The rest of the failed request is dropped, others and the thread go on."""
    model = HeldModel(held=True)
    with batcher() as batches:
        first = start(batches, model, [[1] * 8])
        await entered(model)
        bad = start(batches, model, [[POISON] * 8, [5] * 7, [6] * 6])
        good = start(batches, model, [[2] * 8])
        await queued(batches, 29)
        model.gate.set()
        with pytest.raises(BlitzError) as failed:
            await bad
        assert (await good).rows[0, 0] == 2
        assert (await first).rows[0, 0] == 1
        assert "internal detail" not in str(failed.value)
        assert batches.queued_tokens == 0
        assert (await submit(batches, model, [[9]])).rows[0, 0] == 9
    assert not any([5] * 7 in call for call in model.calls)


@pytest.mark.anyio
async def test_callers_who_share_a_failing_batch_are_served_by_themselves() -> None:
    """Two texts in one micro-batch, one of which the model cannot take: only its caller is told."""
    model = HeldModel(held=True)
    with batcher() as batches:
        first = start(batches, model, [[1] * 8])
        await entered(model)
        bad, good = start(batches, model, [[POISON] * 4]), start(batches, model, [[2] * 4])
        await queued(batches, 8)
        model.gate.set()
        with pytest.raises(BlitzError):
            await bad
        assert (await good).rows.tolist() == [[2, 4]]
        await first
    assert model.calls == [[[1] * 8], [[POISON] * 4, [2] * 4], [[POISON] * 4], [[2] * 4]]


@pytest.mark.anyio
async def test_a_queue_that_takes_too_long_refuses() -> None:
    """max_queue_s bounds the expected wait, once a batch has shown the rate; one alone always goes."""
    model = HeldModel()
    with batcher(max_queue_s=1e-9) as batches:
        await submit(batches, model, [[1] * 8])
        running, waiting = await one_running_one_waiting(batches, model)
        with pytest.raises(Overloaded):
            await submit(batches, model, [[4]])
        model.gate.set()
        await asyncio.gather(running, waiting)


@pytest.mark.anyio
async def test_small_batches_of_an_idle_server_do_not_tell_how_fast_a_queue_drains() -> None:
    """Or the first large request after them would be refused for its own first half."""
    model = HeldModel()
    with batcher(max_queue_s=1e-9) as batches:
        await submit(batches, model, [[1]])
        running, waiting = await one_running_one_waiting(batches, model)
        another = start(batches, model, [[4]])
        await asyncio.sleep(0)  # it queues, or is refused
        model.gate.set()
        await asyncio.gather(running, waiting, another)


@pytest.mark.anyio
async def test_errors_of_ours_keep_their_class() -> None:
    """What an engine raises on purpose reaches the caller as it is, as an object of its own."""

    class Refusing(HeldModel):
        error = InvalidInput("no", field="input[0]")

        def run(self, sequences: Sequence[Sequence[int]]) -> FloatMatrix:
            raise self.error

    with batcher() as batches, pytest.raises(InvalidInput) as caught:
        await submit(batches, Refusing(), [[1]])
    assert caught.value.field == "input[0]"
    assert caught.value is not Refusing.error


@pytest.mark.anyio
async def test_a_model_that_loses_rows_is_an_error_and_not_a_wrong_answer() -> None:
    """Fewer rows than sequences must not leave uninitialised vectors."""

    class Short(HeldModel):
        def run(self, sequences: Sequence[Sequence[int]]) -> FloatMatrix:
            return np.zeros((len(sequences) - 1, 2), np.float32)

    with batcher() as batches, pytest.raises(BlitzError):
        await submit(batches, Short(), [[1], [2]])


@pytest.mark.anyio
async def test_threads_together_keep_within_the_memory() -> None:
    """What would be too much beside others waits for them, and a small one does not overtake it."""
    model = HeldModel(held=True)
    model.bytes_per_token = 10
    with batcher(threads=3, max_bytes=100) as batches:
        tasks = [start(batches, model, [[1] * 6])]
        await entered(model)
        tasks.append(start(batches, model, [[2] * 8]))
        await queued(batches, 8)
        tasks.append(start(batches, model, [[3]]))
        await queued(batches, 9)
        assert not await asyncio.to_thread(model.entered.acquire, timeout=0.1)
        model.gate.set()
        await asyncio.gather(*tasks)
    assert model.calls == [[[1] * 6], [[2] * 8], [[3]]]


@pytest.mark.anyio
async def test_what_fits_beside_others_runs_beside_them() -> None:
    """The memory is shared, and not the threads' to keep."""
    model = HeldModel(held=True)
    model.bytes_per_token = 10
    with batcher(threads=2, max_bytes=100) as batches:
        tasks = [start(batches, model, [[1] * 6]), start(batches, model, [[2] * 4])]
        await entered(model)
        await entered(model)
        model.gate.set()
        await asyncio.gather(*tasks)


@pytest.mark.anyio
async def test_close_fails_what_waits_and_lets_running_batches_end() -> None:
    """Pending: Unavailable. Running: its result. Later: Unavailable."""
    model = HeldModel(held=True)
    with batcher() as batches:
        running = start(batches, model, [[1] * 8])
        await entered(model)
        waiting = start(batches, model, [[2] * 8])
        await queued(batches, 8)
        closing = asyncio.create_task(asyncio.to_thread(batches.close))
        with pytest.raises(Unavailable):
            await waiting
        model.gate.set()
        assert (await running).rows[0, 0] == 1
        await closing
        with pytest.raises(Unavailable):
            await submit(batches, model, [[3]])


@pytest.mark.anyio
async def test_waiting_lets_a_batch_fill() -> None:
    """With max_wait_s, two texts that arrive one after the other run together on a free thread."""
    model = HeldModel()
    with batcher(max_wait_s=30, budget_tokens=4) as batches:
        first = start(batches, model, [[1, 1]])
        await queued(batches, 2)
        second = start(batches, model, [[2, 2]])
        await asyncio.gather(first, second)  # 4 tokens are a full batch: the 30 s are not waited for
    assert model.calls == [[[1, 1], [2, 2]]]


@pytest.mark.anyio
async def test_waiting_ends() -> None:
    """A text that stays alone is run after max_wait_s."""
    with batcher(max_wait_s=0.01) as batches:
        assert (await submit(batches, HeldModel(), [[1]])).rows.tolist() == [[1, 1]]


@pytest.mark.anyio
async def test_nothing_to_embed_is_refused() -> None:
    """An empty list would otherwise wait for ever."""
    with batcher() as batches, pytest.raises(EmptyInput):
        await submit(batches, HeldModel(), [])


@pytest.mark.anyio
async def test_batches_are_counted() -> None:
    """Texts and padded tokens of each micro-batch reach the metrics."""
    metrics = Telemetry(CollectorRegistry())
    with batcher(metrics=metrics) as batches:
        await submit(batches, HeldModel(), [[1, 1], [2]])
    assert b"te_batch_next_size_sum 2.0" in metrics.render()
    assert b"te_batch_next_tokens_sum 4.0" in metrics.render()


@pytest.mark.anyio
async def test_many_callers_on_many_threads_each_get_their_own() -> None:
    """400 requests of mixed sizes at once on 4 threads: every row is the right one."""
    model = HeldModel()
    requests = [[[r * 10 + i + 1] * (1 + (r + i) % 8) for i in range(1 + r % 6)] for r in range(400)]
    with batcher(threads=4, max_queue_tokens=10**6) as batches:
        results = await asyncio.gather(*(submit(batches, model, request) for request in requests))
        assert batches.queued_tokens == 0
    for request, result in zip(requests, results, strict=True):
        assert result.rows.tolist() == [[ids[0], len(ids)] for ids in request]


@pytest.mark.anyio
async def test_close_ends_a_wait_for_a_fuller_batch() -> None:
    """However long a thread may wait for more, what is queued fails and the thread ends."""
    with batcher(max_wait_s=1e6) as batches:
        waiting = start(batches, HeldModel(), [[1]])
        await queued(batches, 1)
        await asyncio.to_thread(batches.close)
        with pytest.raises(Unavailable):
            await waiting
