"""Bulk jobs of sparse and multi-vector models: lists in Parquet and JSONL, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from shared.cards import Task
from tests.fakes.catalogue import bulk_cards
from tests.fakes.embedder import FakeTokenEmbedder, bytes_vector, letters_of
from tests.shared.bulk.world import World, batch_line

pytestmark = pytest.mark.anyio

TEXTS = ["abba", "c", "dad"]
LINES = b"".join(
    json.dumps({"id": n, "text": text, "values": "mine"}).encode() + b"\n"
    for n, text in enumerate(TEXTS)
)
TASKS: tuple[Task, ...] = ("sparse", "multi-vector")


def _world(task: Task) -> World:
    world = World()
    world.backend = FakeTokenEmbedder()
    world.catalogue.listed = [replace(card, task=task) for card in bulk_cards()]
    return world


async def _run(task: Task, **options: str) -> World:
    world = _world(task)
    await world.put(LINES, "mini/a.jsonl", **options)
    await world.drain()
    return world


async def test_sparse_rows_are_lists_in_parquet() -> None:
    """A list of words and one of their weights; an input's field of such a name stays beside them."""
    table = (await _run("sparse")).table("mini/a.jsonl.parquet")
    assert str(table.schema.field("indices").type) == "list<element: int32>"
    assert str(table.schema.field("values").type) == "list<element: float>"
    rights = [letters_of(text) for text in TEXTS]
    assert table["indices"].to_pylist() == [right.indices.tolist() for right in rights]
    assert table["values"].to_pylist() == [right.values.tolist() for right in rights]
    assert "vector" not in table.column_names


async def test_sparse_rows_are_lists_in_jsonl() -> None:
    """As the input's own field of that name is in every other output of a name of ours."""
    output = (await _run("sparse", blitz_format="jsonl")).outputs()["mini/a.jsonl.jsonl"]
    for line, text in zip(map(json.loads, output.splitlines()), TEXTS, strict=True):
        right = letters_of(text)
        assert (line["indices"], line["values"]) == (right.indices.tolist(), right.values.tolist())
        assert line["input_values"] == "mine"
        assert "embedding" not in line


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
async def test_multi_vector_rows_are_lists_of_vectors(format: str) -> None:
    """As many as each text has."""
    world = await _run("multi-vector", blitz_format=format)
    if format == "parquet":
        rows: list[Any] = world.table("mini/a.jsonl.parquet")["vector"].to_pylist()
    else:
        lines = world.outputs()["mini/a.jsonl.jsonl"].splitlines()
        rows = [json.loads(line)["embedding"] for line in lines]
    for row, text in zip(rows, TEXTS, strict=True):
        assert np.array_equal(row, [bytes_vector(each) for each in text])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("format", ["parquet", "jsonl"])
async def test_a_file_without_good_rows_has_the_columns(task: Task, format: str) -> None:
    """And no row."""
    world = _world(task)
    await world.put(b'{"id": 1, "text": ""}\n', "mini/a.jsonl", blitz_format=format)
    await world.drain()
    if format == "parquet":
        table = world.table("mini/a.jsonl.parquet")
        assert table.num_rows == 0
        assert {"sparse": "indices", "multi-vector": "vector"}[task] in table.column_names
    else:
        assert world.outputs()["mini/a.jsonl.jsonl"] == b""


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("option", [("dimensions", "2"), ("dtype", "int8"), ("format", "npy")], ids=str)
async def test_what_such_a_model_has_no_answer_to_is_refused(
    task: Task, option: tuple[str, str]
) -> None:
    """Before anything is embedded, naming the option and the task."""
    field, value = option
    status = await _world(task).rejected(LINES, "mini/a.jsonl", **{f"blitz_{field}": value})
    assert status.field == field
    assert f"mini is a {task} model, which has no single dense vector for a text" in (status.error or "")


async def test_openai_s_batches_are_refused() -> None:
    """They have one vector for each text."""
    line = batch_line("a", "text", model="mini")
    status = await _world("sparse").rejected(line, "mini/b.jsonl")
    assert status.field == "model"
    assert "as OpenAI's batches have it" in (status.error or "")
