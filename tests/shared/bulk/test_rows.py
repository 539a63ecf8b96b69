"""shared/bulk/rows.py: where chunks are cut, and their bytes."""

from __future__ import annotations

import io
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.bulk.inputs.detect import InputFormat, Kind, ReadOptions, read_rows
from shared.bulk.rows import (
    BadRow,
    Chunk,
    Row,
    cut_chunks,
    embedded,
    free_names,
    pack_table,
    unpack_table,
    vectors_of,
)
from tests.shared.bulk.sources import memory_source

BAD = BadRow(1, None, "empty_text", "it is empty")


def parquet_file() -> bytes:
    file = io.BytesIO()
    texts = [f"text {number}" * (number % 7) for number in range(700)]
    pq.write_table(pa.table({"text": texts, "n": range(700)}), file, row_group_size=300)
    return file.getvalue()


FILES: dict[Kind, bytes] = {
    "jsonl": b"".join(b'{"text":"%d","n":%d}\n' % (n, n) for n in range(700)) + b"nonsense\n",
    "batch": b"".join(
        b'{"custom_id":"%d","method":"POST","url":"/v1/embeddings","body":{"input":["x","y"]}}\n' % n
        for n in range(300)
    ),
    "csv": b"text,n\n" + b"".join(b'"%d\n",%d\n' % (n, n) for n in range(700)),
    "text": b"\n".join(b"text %d" % n for n in range(700)),
    "parquet": parquet_file(),
}


def chunks_of(kind: Kind, at_most: int | None = None) -> list[Chunk]:
    source = memory_source(FILES[kind], at_most=at_most)
    return list(cut_chunks(read_rows(source, InputFormat(kind), ReadOptions())))


@pytest.mark.parametrize("kind", FILES)
def test_chunks_are_the_same_bytes_whatever_sizes_the_reads_have(kind: Kind) -> None:
    """A splitter that is run again writes the chunks that it wrote before."""
    first = [(chunk.index, chunk.to_arrow(), chunk.bad_to_json()) for chunk in chunks_of(kind)]
    again = [(chunk.index, chunk.to_arrow(), chunk.bad_to_json()) for chunk in chunks_of(kind, 777)]
    assert [index for index, *_ in first] == list(range(len(first)))
    assert len(first) > 1
    assert first == again


@pytest.mark.parametrize("kind", FILES)
def test_a_chunk_comes_back_from_its_bytes(kind: Kind) -> None:
    """All columns with their types."""
    for chunk in chunks_of(kind):
        back = unpack_table(chunk.to_arrow())
        assert back.equals(chunk.table)
        assert back.schema == chunk.table.schema


def test_chunks_have_the_columns_of_their_format() -> None:
    """JSON has its other fields in one column, tables have theirs, plain text has none."""
    columns = {kind: chunks_of(kind)[0].table.column_names for kind in FILES}
    assert columns == {
        "jsonl": ["row", "line", "id", "text", "fields"],
        "batch": ["row", "line", "part", "parts", "id", "text", "fields"],
        "csv": ["row", "line", "id", "text", "n"],
        "text": ["row", "line", "id", "text"],
        "parquet": ["row", "line", "id", "text", "n"],
    }
    assert [len(chunk.table) + len(chunk.bad) for chunk in chunks_of("parquet")] == [512, 188]
    assert chunks_of("parquet")[1].table["n"].to_pylist() == [n for n in range(512, 700) if n % 7]


def test_bad_rows_count_and_keep_their_order() -> None:
    """A file of nothing else must not become one chunk."""
    chunks = list(cut_chunks([BAD, Row(1, 2, "a", "x"), *[BAD] * 5], max_rows=3))
    assert [(len(chunk.table), len(chunk.bad)) for chunk in chunks] == [(1, 2), (0, 3), (0, 1)]
    assert unpack_table(chunks[1].to_arrow()).num_rows == 0
    bad = BadRow(7, "ä", "invalid_text", "text must be a string")
    assert [BadRow.from_json(line) for line in (BAD.to_json(), bad.to_json())] == [BAD, bad]
    assert json.loads(BAD.to_json()) == {"line": 1, "code": "empty_text", "message": "it is empty"}


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40), max_size=40), st.integers(1, 10), st.integers(1, 60))
def test_no_chunk_is_larger_than_allowed_unless_it_is_one_row(
    sizes: list[int], max_rows: int, max_bytes: int
) -> None:
    """Rows keep their order, no row is lost, and no chunk could have taken one more."""
    rows = [Row(n, n + 1, str(n), "ä" * (size // 2) + "x" * (size % 2)) for n, size in enumerate(sizes)]
    chunks = list(cut_chunks(rows, max_rows, max_bytes))
    assert [n for chunk in chunks for n in chunk.table["row"].to_pylist()] == list(range(len(sizes)))
    cut = [[len(text.encode()) for text in chunk.table["text"].to_pylist()] for chunk in chunks]
    assert all(len(part) == 1 or (len(part) <= max_rows and sum(part) <= max_bytes) for part in cut)
    for part, following in itertools.pairwise(cut):
        assert len(part) == max_rows or sum(part) + following[0] > max_bytes


def test_fields_count_for_a_row_s_size() -> None:
    """A chunk is held in memory with them."""
    assert Row(0, 1, "a", "xy").size == 2
    assert Row(0, 1, "a", "xy", '{"n":1}').size == 9
    assert Row(0, 1, "a", "xy", {"n": "ä", "m": "z"}).size == 5


def test_vectors_come_back_from_a_part() -> None:
    """Bit by bit, and of a slice of it, too."""
    (chunk,) = cut_chunks([Row(n, n + 1, str(n), "x") for n in range(5)])
    vectors = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    part = embedded(chunk.table, vectors, [1, 2, 3, 4, 5])
    assert part.schema.field("vector").type == pa.list_(pa.float32(), 3)
    assert part["tokens"].type == pa.int32()
    assert vectors_of(unpack_table(pack_table(part))).tobytes() == vectors.tobytes()
    assert vectors_of(part.slice(2, 2)).tobytes() == vectors[2:4].tobytes()
    assert vectors_of(part.slice(0, 0)).shape == (0, 3)


@pytest.mark.parametrize(
    ("names", "taken", "free"),
    [
        (["n"], [], ["n"]),
        (["id"], [], ["input_id"]),
        (["id"], ["input_id"], ["input_id_2"]),
        (["n"], ["n", "n_2"], ["n_3"]),
        (["n", "n_2", "n", "n_2", "n"], [], ["n", "n_2", "n_3", "n_2_2", "n_4"]),
        (["id", "input_id", "id"], [], ["input_id", "input_id_2", "input_id_3"]),
    ],
)
def test_names_that_are_taken_get_another(names: list[str], taken: list[str], free: list[str]) -> None:
    """Ours first, then those of columns before it."""
    assert list(free_names(names, {"id"}, taken)) == free


def test_each_number_of_a_name_is_tried_once() -> None:
    """However many names are alike: the search for the next one does not begin anew."""
    tries = 0

    class Counted(str):
        def __format__(self, spec: str) -> str:
            nonlocal tries
            tries += 1
            return str(self)

    assert list(free_names([Counted("n")] * 1000, set()))[-1] == "n_1000"
    assert tries == 999
