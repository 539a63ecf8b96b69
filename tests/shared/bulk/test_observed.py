"""What is told of bulk jobs: a span for each step, a trace for each job; rows and jobs counted once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from shared.bulk import control, jobs
from shared.bulk.control import SPLIT
from shared.bulk.jobs import StepMessage
from shared.context import trace
from shared.context.trace import Span
from shared.errors import BackendFailed, InvalidInput, InvalidMessage, Unavailable
from shared.observability.logs import failure_of
from tests.fakes.memory import TRIES, Died
from tests.shared.bulk.world import INPUT, KEY, ROWS, World

pytestmark = pytest.mark.anyio


def counted(world: World, name: str) -> dict[str, float]:
    """What is not zero of blitz_bulk_NAME, by its label; of a histogram how often."""
    return {
        each.labels[0][1]: each.count if each.kind == "histogram" else each.value
        for each in world.metrics.samples()
        if each.name == f"blitz_bulk_{name}" and each.value
    }


def named(told: list[Span], step: str) -> list[Span]:
    return [span for span in told if span.name == f"bulk {step}"]


async def test_each_step_is_a_span_of_its_jobs_trace(told: list[Span]) -> None:
    """With the job, its model, and how much work it was."""
    world = World()
    await world.put()
    await world.drain()
    (manifest,) = world.manifests()
    assert {span.name for span in told} == {"bulk split", "bulk embed", "bulk finish"}
    for span in told:
        assert (span.kind, span.trace_id, span.error) == ("consumer", f"{manifest.job.id:0>32}", "")
        assert (span.labels["job"], span.labels["model"]) == (manifest.job.id, "mini")
    assert [span.measures["rows"] for span in named(told, "embed")] == [512, 512, ROWS - 1024]
    assert sum(span.measures["tokens"] for span in named(told, "embed")) == 3 * ROWS
    assert named(told, "split")[0].measures == {"rows": ROWS, "failed": 0}
    finish = named(told, "finish")[0]
    assert finish.measures == {"rows": ROWS, "failed": 0, "tokens": 3 * ROWS}
    assert finish.labels["status"] == "completed"
    assert counted(world, "rows") == {"embedded": ROWS}
    assert counted(world, "jobs") == {"completed": 1}
    assert counted(world, "step_failures") == {}


async def test_a_trace_id_is_valid(told: list[Span]) -> None:
    """A backend in another process would continue it."""
    world = World()
    await world.put()
    await world.drain()
    for span in list(told):
        with trace.serving(span.traceparent) as served:
            assert served.parent_id == span.span_id


async def test_messages_that_come_twice_are_counted_as_steps_but_not_as_rows(told: list[Span]) -> None:
    """As is the job."""
    world = World()
    etag = await world.put()
    message = world.take(SPLIT)
    for _ in range(2):
        await world.bulk().split(message)
    chunk = world.take("bulk-cpu")
    for _ in range(2):
        await world.bulk().embed(chunk)
    assert [span.measures.get("rows") for span in named(told, "embed")] == [512, None]
    assert counted(world, "rows") == {"embedded": 512}
    await world.drain()
    await world.bulk().submit(KEY, etag)
    await world.drain()
    assert counted(world, "rows") == {"embedded": ROWS}
    assert counted(world, "jobs") == {"completed": 1}
    assert counted(world, "step_duration")["split"] > 2


async def test_what_another_process_did_first_is_counted_by_that_one(told: list[Span]) -> None:
    """Two may have the same message: here each blob is there a moment before it is created."""
    world = World()
    create = world.memory.out.create

    def come_second(key: str, data: bytes | Path) -> bool:
        create(key, data)
        return create(key, data)

    world.memory.out.create = come_second  # type: ignore[method-assign]
    await world.put(b"not json\n" + INPUT)
    await world.put(key="nope/texts.jsonl")
    await world.drain()
    assert sorted(m.status.status for m in world.manifests()) == ["completed", "failed"]
    assert counted(world, "rows") == counted(world, "jobs") == counted(world, "step_failures") == {}
    assert all("rows" not in span.measures for span in named(told, "embed"))


async def test_rows_without_a_vector_are_failed_ones_whatever_the_reason(told: list[Span]) -> None:
    """Unreadable ones, those that the model refuses, and those of a chunk that is given up."""
    world = World()
    world.backend.refuses = {"text 5": InvalidInput("no"), "text 600": BackendFailed("broken")}
    await world.put(b"not json\n" + INPUT)
    await world.drain()
    (manifest,) = world.manifests()
    counts = manifest.status.request_counts
    assert counted(world, "rows") == {"embedded": counts.completed, "failed": counts.failed}
    assert counts.failed > 512
    assert counted(world, "step_failures") == {"embed": TRIES}
    (given_up,) = named(told, "give_up")
    assert given_up.trace_id == f"{manifest.job.id:0>32}"
    assert given_up.measures["failed"] == given_up.measures["rows"] == 512
    assert named(told, "split")[0].measures == {"rows": ROWS + 1, "failed": 1}


async def test_a_step_that_fails_names_the_class_and_logs_what_nobody_expected(
    told: list[Span], caplog: pytest.LogCaptureFixture
) -> None:
    """Within its span, without the message; our own errors are logged by whoever tries again."""
    world = World()
    await world.begin(b'{"text": "zebra"}\n')
    chunk = world.take("bulk-cpu")
    for error in (RuntimeError("zebra"), Unavailable("not now")):
        world.backend.refuses = {"zebra": error}
        with caplog.at_level(logging.INFO), pytest.raises(type(error)):
            await world.bulk().embed(chunk)
    failed = named(told, "embed")
    assert [span.error for span in failed] == ["RuntimeError", "Unavailable"]
    assert all(span.labels["job"] for span in failed)
    (record,) = caplog.records
    failure = failure_of(record)
    assert failure
    assert failure.error == "RuntimeError"
    assert "zebra" not in caplog.text
    assert counted(world, "step_failures") == {"embed": 2}


async def test_an_input_that_cannot_be_a_job_is_a_failed_one(told: list[Span]) -> None:
    """Its step has done what it should."""
    world = World()
    await world.put(key="nope/texts.jsonl")
    await world.drain()
    (manifest,) = world.manifests()
    (span,) = told
    assert (span.name, span.error, span.labels["status"]) == ("bulk split", "", "failed")
    assert span.trace_id == f"{manifest.job.id:0>32}"
    assert counted(world, "jobs") == {"failed": 1}


async def test_an_input_that_is_given_up_is_a_failed_job(told: list[Span]) -> None:
    """Of the trace of the job that was begun with it."""
    world = World()
    await world.put()
    message = world.take(SPLIT)
    job_id = await world.bulk().split(message)
    await world.bulk().give_up(message)
    (span,) = named(told, "give_up")
    assert (span.labels["job"], span.labels["status"]) == (job_id, "failed")
    assert counted(world, "jobs") == {"failed": 1}


async def test_a_cancelled_job_is_counted_as_such() -> None:
    """Once, however often its last step comes."""
    world = World()
    job_id = await world.begin()
    control.cancel_job(world.memory.storage, job_id)
    for _ in range(2):
        await world.bulk().finish(jobs.encode(StepMessage(job=job_id)))
    assert counted(world, "jobs") == {"cancelled": 1}


async def test_a_step_of_no_job_is_a_span_of_its_own(told: list[Span]) -> None:
    """Garbage, a job that is not there, and the look for what was lost."""
    world = World()
    with pytest.raises(InvalidMessage):
        await world.bulk().give_up(b"garbage")
    await world.bulk().embed(jobs.encode(StepMessage(job="nope", chunk="000000-1.arrow")))
    await world.bulk().reconcile()
    assert [span.name for span in told] == ["bulk give_up", "bulk embed", "bulk reconcile"]
    assert len({span.trace_id for span in told}) == 3
    assert not any(span.labels for span in told)


async def test_a_process_that_is_stopped_has_not_failed(told: list[Span]) -> None:
    """Nothing is wrong with what it worked on."""
    world = World()
    await world.put()
    message = world.take(SPLIT)
    world.memory.fuse.left = 10
    with pytest.raises(Died):
        await world.bulk().split(message)
    assert counted(world, "step_failures") == {}
    assert told[-1].error == "Died"
