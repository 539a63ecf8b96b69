"""shared/bulk/inputs/parquet.py: ranges, types, and what is damaged."""

from __future__ import annotations

import io
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.bulk.inputs import parquet
from shared.bulk.inputs.detect import InputFormat, ReadOptions, read_rows
from shared.bulk.inputs.source import ByteSource
from shared.bulk.rows import ArrowRow, BadRow, Row, cut_chunks
from shared.errors import InvalidInput
from tests.shared.bulk.sources import memory_source, read_all

TEXTS = [f"text {number**9}" for number in range(300)]


def written(table: pa.Table, *, rows: int = 100) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=rows, compression="none")
    return file.getvalue()


def summary(rows: list[Row | BadRow]) -> list[tuple[object, ...]]:
    return [
        (row.line, row.id, row.code)
        if isinstance(row, BadRow)
        else (row.row, row.line, row.id, row.text)
        for row in rows
    ]


@pytest.mark.parametrize(
    "type_",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_texts_of_every_string_type_are_read(type_: pa.DataType) -> None:
    """null and empty ones are bad rows."""
    table = pa.table({"text": pa.array(["a", None, "", "b"]).cast(type_), "id": [5, 6, 7, None]})
    assert summary(read_all("a.parquet", written(table, rows=3))) == [
        (0, 1, "5", "a"),
        (2, "6", "missing_text"),
        (3, "7", "empty_text"),
        (3, 4, "3", "b"),
    ]


def test_other_columns_keep_their_types_and_an_id_that_is_no_text_too() -> None:
    """Chunks have them; names that are ours are called input_NAME."""
    table = pa.table(
        {
            "id": pa.array([1, 2], pa.uint16()),
            "row": [[1], None],
            "text": ["a", "b"],
            "kind": pa.array(["x", "y"]).dictionary_encode(),
            "at": pa.array([1000, 2000], pa.timestamp("ns", tz="UTC")),
        }
    )
    (chunk,) = cut_chunks(read_all("a.parquet", written(table, rows=1)))
    assert chunk.table.drop_columns(["row", "line", "id", "text"]).to_pydict() == {
        "input_id": [1, 2],
        "input_row": [[1], None],
        "kind": ["x", "y"],
        "at": table["at"].to_pylist(),
    }
    assert chunk.table.schema.field("input_id").type == pa.uint16()
    assert chunk.table.schema.field("kind").type == table.schema.field("kind").type
    assert chunk.table.schema.field("at").type == table.schema.field("at").type


def test_a_file_of_texts_alone_has_no_other_columns() -> None:
    """Its chunks have ours."""
    (chunk,) = cut_chunks(read_all("a.parquet", written(pa.table({"text": ["a", "b"]}))))
    assert chunk.table.to_pylist() == [
        {"row": 0, "line": 1, "id": "0", "text": "a"},
        {"row": 1, "line": 2, "id": "1", "text": "b"},
    ]


@pytest.mark.parametrize("window", [parquet._WINDOW_BYTES, 1000])
def test_the_file_is_read_by_ranges_and_nearly_no_byte_twice(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small row groups by one request each; of a large one, the columns by buffers."""
    monkeypatch.setattr(parquet, "_WINDOW_BYTES", window)
    many = [f"{text} {'x' * 5000}" for text in TEXTS]
    data = written(pa.table({"text": many, "n": range(300)}))
    reads: list[int] = []

    def read(start: int, length: int) -> bytes:
        assert 0 <= start < start + length <= len(data)
        reads.append(length)
        return data[start : start + length]

    rows = read_rows(ByteSource(len(data), read), InputFormat("parquet"), ReadOptions())
    first = next(rows)
    assert isinstance(first, Row)
    assert sum(reads) < len(data) * 0.5  # the footer and the first row group
    assert [first.text, *(row.text for row in rows if isinstance(row, Row))] == many
    assert sum(reads) < len(data) * 1.2
    assert max(reads) < len(data) * 0.5


def test_short_reads_change_nothing() -> None:
    """A storage may give less than it is asked for."""
    data = written(pa.table({"text": TEXTS}))
    rows = read_rows(memory_source(data, at_most=100), InputFormat("parquet"), ReadOptions())
    assert [row.text for row in rows if isinstance(row, Row)] == TEXTS


def test_a_damaged_row_group_ends_the_job() -> None:
    """With the row: its rows are lost, and an output without them would pass for a whole one."""
    data = bytearray(written(pa.table({"text": TEXTS})))
    start = pq.read_metadata(io.BytesIO(bytes(data))).row_group(1).column(0).data_page_offset
    data[start - 64 : start + 64] = b"\xff" * 128
    with pytest.raises(InvalidInput, match="damaged from row 101 on, 100 rows of its row group 1"):
        read_all("a.parquet", bytes(data))


def test_texts_that_are_no_utf8_are_bad_rows() -> None:
    """Parquet's strings are not checked by those who write them."""
    data = written(pa.table({"text": ["good", "bad1", "also good"]}))
    assert summary(read_all("a.parquet", data.replace(b"bad1", b"b\xffd1"))) == [
        (0, 1, "0", "good"),
        (2, None, "invalid_utf8"),
        (2, 3, "2", "also good"),
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"PAR1",
        lambda data: b"text\n" * 100,
        lambda data: data[:-10],
        lambda data: data.replace(b"text", b"body"),
        lambda data: data.replace(b"text", b"\xff\xff\xff\xff"),
        lambda data: written(pa.table({"text": [1, 2]})),
    ],
)
def test_what_is_no_parquet_file_with_texts_is_refused(damage: Callable[[bytes], bytes]) -> None:
    """With a message for the user."""
    with pytest.raises(InvalidInput):
        read_all("a.parquet", damage(written(pa.table({"text": TEXTS}))))


def test_a_network_s_error_does_not_pass_for_damage() -> None:
    """Else its row group would be lost without anyone noticing."""
    data = written(pa.table({"text": TEXTS}))
    reads: list[int] = []

    def read(start: int, length: int) -> bytes:
        reads.append(start)
        if start and len(reads) > 2:
            raise ConnectionResetError("gone")
        return data[start : start + length]

    rows = read_rows(ByteSource(len(data), read), InputFormat("parquet"), ReadOptions())
    with pytest.raises(ConnectionResetError):
        list(rows)


def test_rows_of_one_batch_share_it() -> None:
    """They are not taken apart before a chunk is made."""
    rows = read_all("a.parquet", written(pa.table({"text": TEXTS, "n": range(300)})))
    records = [row.fields for row in rows if isinstance(row, Row)]
    assert all(isinstance(record, ArrowRow) for record in records)
    assert len({id(record.batch) for record in records if isinstance(record, ArrowRow)}) == 3
