"""steps/embedding.py: a text that a model cannot do is a failed row; what was cut is told."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from shared.bulk.jobs import Counts
from shared.contracts import EmbedRequest, EmbedResult
from shared.errors import (
    BackendFailed,
    BlitzError,
    InputTooLong,
    InvalidArtefact,
    InvalidInput,
    Misconfigured,
    NotFinite,
    Unavailable,
)
from tests.fakes.embedder import FakeEmbedder
from tests.shared.bulk.world import World, batch_line

pytestmark = pytest.mark.anyio

LINES = b"".join(b'{"id": "r%d", "text": "text %d"}\n' % (n, n) for n in range(64))


class Failing(FakeEmbedder):
    """Raises an error that names the first of the texts that it cannot do."""

    def __init__(self, cannot: set[str], error: type[BlitzError]) -> None:
        super().__init__()
        self.cannot = cannot
        self.error = error

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        for index, text in enumerate(request.inputs):
            if text in self.cannot:
                self.requests.append(request)
                raise self.error(f"NaN for input[{index}]", field=f"input[{index}]")
        return await super().embed(request)


class Unlooked(FakeEmbedder):
    """One that does not look at its numbers."""

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        result = await super().embed(request)
        for index, text in enumerate(request.inputs):
            if text == "text 3":
                result.vectors[index, 1] = np.nan
            if text == "text 5":
                result.vectors[index, 0] = -np.inf
        return result


async def run(backend: Any, data: bytes = LINES, key: str = "mini/a.jsonl", **options: str) -> World:
    world = World()
    world.backend = backend
    await world.put(data, key, **options)
    await world.drain()
    return world


def errors(world: World, key: str = "mini/a.jsonl") -> list[tuple[str, str, str]]:
    found = map(json.loads, world.outputs()[f"{key}.errors.jsonl"].splitlines())
    return [(each["id"], each["code"], each["message"]) for each in found]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BlitzError, "embedding_failed"),
        (BackendFailed, "embedding_failed"),
        (Misconfigured, "embedding_failed"),
        (InvalidArtefact, "embedding_failed"),
        (NotFinite, "embedding_failed"),
        (InvalidInput, "input_refused"),
        (InputTooLong, "input_refused"),
    ],
)
async def test_an_error_about_one_text_is_one_failed_row(error: type[BlitzError], code: str) -> None:
    """With the reason; the others of its chunk have their vectors, in order."""
    world = await run(Failing({"text 3", "text 60"}, error))
    assert errors(world) == [(id, code, "NaN for the text") for id in ("r3", "r60")]
    rows = [n for n in range(64) if n not in (3, 60)]
    assert world.table("mini/a.jsonl.parquet")["row"].to_pylist() == rows
    [manifest] = world.manifests()
    assert manifest.status.request_counts == Counts(64, 62, 2)


async def test_an_error_that_may_go_by_is_tried_again_as_a_whole() -> None:
    """Whatever it names: it says nothing of the text."""
    world = await run(Failing({"text 3"}, Unavailable))
    assert {code for _, code, _ in errors(world)} == {"embedding_failed"}
    assert len(errors(world)) == 64
    assert len(world.backend.requests) == 5  # as often as a message is tried


async def test_texts_that_all_fail_are_not_read_a_time_each() -> None:
    """In halves: 64 texts are read 7 times at most, and not 64 times."""
    cannot = {f"text {n}" for n in range(64)}
    world = await run(Failing(cannot, BackendFailed))
    assert len(errors(world)) == 64
    assert sum(len(request.inputs) for request in world.backend.requests) <= 64 * 7


@pytest.mark.parametrize("format", ["parquet", "jsonl", "npy"])
async def test_numbers_that_are_none_are_in_no_output(format: str) -> None:
    """Also if the backend let them pass."""
    world = await run(Unlooked(), blitz_format=format)
    why = "the model's numbers for this text are NaN or infinite"
    assert errors(world) == [(id, "embedding_failed", why) for id in ("r3", "r5")]
    [manifest] = world.manifests()
    assert manifest.status.request_counts == Counts(64, 62, 2)


async def test_a_request_of_a_batch_fails_whole_with_the_reason() -> None:
    """A request has an answer or an error."""
    data = batch_line("a", ["text 1", "text 3"]) + batch_line("b", "text 4")
    world = await run(Failing({"text 3"}, BackendFailed), data, "mini/b.jsonl")
    [line] = world.outputs()["mini/b.jsonl.errors.jsonl"].splitlines()
    found = json.loads(line)
    assert (found["custom_id"], found["error"]["message"]) == ("a", "NaN for the text")
    [answer] = world.outputs()["mini/b.jsonl.jsonl"].splitlines()
    assert json.loads(answer)["custom_id"] == "b"


class Cutting(FakeEmbedder):
    """Tells which texts it cut: those with a 7."""

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        result = await super().embed(request)
        cut = tuple(at for at, text in enumerate(request.inputs) if "7" in str(text))
        return replace(result, cut=cut)


CUT = [n for n in range(64) if "7" in str(n)]


async def test_texts_that_were_cut_are_counted_and_marked() -> None:
    """In the status, and in every format's output."""
    world = await run(Cutting())
    [manifest] = world.manifests()
    assert manifest.status.truncated == len(CUT)
    table = world.table("mini/a.jsonl.parquet")
    assert [row for row, cut in enumerate(table["truncated"].to_pylist()) if cut] == CUT
    assert table["truncated"].null_count == 0
    for format, output in (("jsonl", "jsonl"), ("npy", "ids.jsonl")):
        world = await run(Cutting(), blitz_format=format)
        lines = map(json.loads, world.outputs()[f"mini/a.jsonl.{output}"].splitlines())
        assert [row for row, line in enumerate(lines) if line.get("truncated")] == CUT
    data = batch_line("a", ["text 1", "text 7", "text 70"]) + batch_line("b", "text 4")
    world = await run(Cutting(), data, "mini/b.jsonl")
    answers = list(map(json.loads, world.outputs()["mini/b.jsonl.jsonl"].splitlines()))
    assert [answer["response"].get("truncated") for answer in answers] == [[1, 2], None]


async def test_where_nothing_was_cut_that_is_said() -> None:
    """None of 64."""
    world = await run(FakeEmbedder())
    [manifest] = world.manifests()
    assert manifest.status.truncated == 0
    assert world.table("mini/a.jsonl.parquet")["truncated"].to_pylist() == [False] * 64
