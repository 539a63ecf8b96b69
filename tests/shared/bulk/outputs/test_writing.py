"""shared/bulk/outputs/writing.py: what goes in comes out, and the same bytes each time."""

from __future__ import annotations

import base64
import datetime
import decimal
import io
import json
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.bulk.inputs.detect import ReadOptions
from shared.bulk.outputs import writing
from shared.bulk.outputs.writing import Dtype, quantise, write_ids, write_jsonl, write_npy, write_parquet
from shared.bulk.rows import cut_chunks, embedded, pack_table, unpack_table
from tests.shared.bulk.outputs.vectors import D, all_vectors, vectors_for
from tests.shared.bulk.sources import read_all

JSONL = b"".join(b'{"id":%d,"text":"text %d","n":0.10,"embedding":null}\n' % (n, n) for n in range(9))
CSV = b"text,key,vector\n" + b"".join(b'"text, %d",k%d,v%d\n' % (n, n, n) for n in range(9))
FILES = {"a.jsonl": JSONL, "a.csv": CSV}


def embedded_chunks(name: str, data: bytes, options: ReadOptions | None = None) -> list[pa.Table]:
    """Of three rows each; the last has a bad row alone."""
    chunks = cut_chunks([*read_all(name, data, options), *read_all("a.jsonl", b"{}\n")], max_rows=3)
    return [
        embedded(chunk.table, vectors_for(len(chunk.table), chunk.index), [5] * len(chunk.table))
        for chunk in chunks
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("name", FILES)
def test_parquet_has_the_input_s_columns_and_the_vectors(name: str, dtype: Dtype) -> None:
    """Read back by pyarrow; the file says how to read its vectors."""
    chunks = embedded_chunks(name, FILES[name])
    file = b"".join(write_parquet(chunks, dimensions=D, dtype=dtype, metadata={"model": "m"}))
    back = pq.read_table(io.BytesIO(file))
    inputs = {"a.jsonl": ["fields"], "a.csv": ["key", "input_vector"]}[name]
    scale = ["scale"] if dtype == "int8" else []
    assert back.column_names == ["row", "id", "text", *inputs, "tokens", "truncated", *scale, "vector"]
    rest = [column for column in back.column_names if column not in ("scale", "vector")]
    assert back.select(rest).equals(pa.concat_tables(chunks[:-1]).select(rest))
    stored, scales = quantise(all_vectors(chunks), dtype)
    assert np.array(back["vector"].to_pylist(), stored.dtype).tobytes() == stored.tobytes()
    assert back.schema.field("vector").type == pa.list_(pa.from_numpy_dtype(stored.dtype), D)
    if scales is not None:
        assert back["scale"].to_numpy().tobytes() == scales.tobytes()
    about = json.loads(back.schema.metadata[b"blitz.vector"])
    assert (about["dtype"], about["dimensions"], back.schema.metadata[b"model"]) == (dtype, D, b"m")


def test_parquet_is_gathered_to_row_groups_and_written_as_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parts are not held until the end."""
    monkeypatch.setattr(writing, "ROW_GROUP_BYTES", 400)
    taken: list[int] = []

    def chunks() -> Iterator[pa.Table]:
        for index, chunk in enumerate(embedded_chunks("a.jsonl", JSONL)):
            taken.append(index)
            yield chunk

    blocks = write_parquet(chunks(), dimensions=D)
    written = [next(blocks)]
    assert len(taken) == 2
    file = b"".join([*written, *blocks])
    assert [pq.read_metadata(io.BytesIO(file)).row_group(group).num_rows for group in range(2)] == [6, 3]


def test_parquet_of_no_rows_can_be_read() -> None:
    """All rows may be bad; then no chunk has the input's columns."""
    for chunks in ([], embedded_chunks("a.jsonl", b"{}\n")):
        back = pq.read_table(io.BytesIO(b"".join(write_parquet(chunks, dimensions=D))))
        assert back.column_names == ["row", "id", "text", "tokens", "truncated", "vector"]
        assert back.num_rows == 0
        assert back.schema.field("vector").type == pa.list_(pa.float32(), D)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", FILES)
def test_parquet_of_failed_rows_alone_has_the_input_s_columns(name: str, dtype: Dtype) -> None:
    """The very schema that it would have with their vectors."""
    chunks = embedded_chunks(name, FILES[name])[:-1]
    empty = [unpack_table(pack_table(chunk.slice(0, 0))) for chunk in chunks]
    some, none = (
        pq.read_table(io.BytesIO(b"".join(write_parquet(each, dimensions=D, dtype=dtype))))
        for each in (chunks, empty)
    )
    assert none.num_rows == 0
    assert none.schema.equals(some.schema, check_metadata=True)


@pytest.mark.parametrize(
    "write",
    [
        lambda chunks: write_parquet(chunks, dimensions=D, dtype="int8"),
        lambda chunks: write_jsonl(chunks),
        lambda chunks: write_npy(chunks, rows=9, dimensions=D),
        lambda chunks: write_ids(chunks),
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_two_runs_write_the_same_bytes(
    name: str, write: Callable[[list[pa.Table]], Iterator[bytes]]
) -> None:
    """A finaliser that is run again changes nothing."""
    first, second = (b"".join(write(embedded_chunks(name, FILES[name]))) for _ in range(2))
    assert first == second


def test_jsonl_has_ids_vectors_and_input_fields() -> None:
    """Numbers are as the input wrote them, an id that is a number is one, floats are exact."""
    chunks = embedded_chunks("a.jsonl", JSONL)
    file = b"".join(write_jsonl(chunks))
    assert b'"n":0.10' in file
    lines = [json.loads(line) for line in file.splitlines()]
    assert [list(line) for line in lines] == [["id", "embedding", "text", "n", "input_embedding"]] * 9
    assert [(line["id"], line["text"]) for line in lines] == [(n, f"text {n}") for n in range(9)]
    vectors = np.array([line["embedding"] for line in lines], np.float32)
    assert vectors.tobytes() == all_vectors(chunks).tobytes()


def test_jsonl_of_a_table_has_its_columns() -> None:
    """int8 vectors come with their scale."""
    chunks = embedded_chunks("a.csv", CSV, ReadOptions(id_column="key"))
    lines = [json.loads(line) for line in b"".join(write_jsonl(chunks, dtype="int8")).splitlines()]
    assert [list(line) for line in lines] == [["id", "embedding", "scale", "text", "input_vector"]] * 9
    assert [(line["id"], line["input_vector"]) for line in lines] == [
        (f"k{n}", f"v{n}") for n in range(9)
    ]
    stored, scales = quantise(all_vectors(chunks), "int8")
    assert [line["embedding"] for line in lines] == stored.tolist()
    assert scales is not None
    assert np.array([line["scale"] for line in lines], np.float32).tobytes() == scales.tobytes()


def test_jsonl_of_parquet_has_json_s_nearest_value_of_every_type() -> None:
    """None of them stops the job: what JSON and Python lack is a string or null."""
    day = datetime.datetime(2020, 1, 2, 3, 4, 5, 6)
    nanos = 1_577_934_245_000_006_007
    columns = {
        "text": pa.array(["x"]),
        "ns": pa.array([nanos], pa.timestamp("ns", tz="Europe/Berlin")),
        "inner": pa.array([{"a": [nanos]}], pa.struct([("a", pa.list_(pa.timestamp("ns")))])),
        "us": pa.array([day]),
        "date": pa.array([day.date()]),
        "far": pa.array([2**30], pa.int32()).cast(pa.date32()),
        "time": pa.array([1001], pa.time64("ns")),
        "span": pa.array([5], pa.duration("ns")),
        "money": pa.array([decimal.Decimal("1.50")]),
        "raw": pa.array([b"\xff"]),
        "kind": pa.array(["y"]).dictionary_encode(),
        "pairs": pa.array([[("k", nanos)]], pa.map_(pa.string(), pa.timestamp("ns"))),
        "half": pa.array(np.array([0.5], np.float16)),
        "nan": pa.array([float("nan")]),
        "fixed": pa.array([[1, 2]], pa.list_(pa.int8(), 2)),
        "large": pa.array([["z"]], pa.large_list(pa.string())),
        "huge": pa.array([2**64 - 1], pa.uint64()),
        "nothing": pa.nulls(1),
    }
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    line = json.loads(b"".join(write_jsonl(embedded_chunks("a.parquet", file.getvalue()))))
    stamp = "2020-01-02T03:04:05.000006"
    assert {name: line[name] for name in columns} == {
        "text": "x",
        "ns": stamp,
        "inner": {"a": [stamp]},
        "us": stamp,
        "date": "2020-01-02",
        "far": None,
        "time": "00:00:00.000001",
        "span": 5,
        "money": "1.50",
        "raw": base64.b64encode(b"\xff").decode(),
        "kind": "y",
        "pairs": [["k", stamp]],
        "half": 0.5,
        "nan": None,
        "fixed": [1, 2],
        "large": ["z"],
        "huge": 2**64 - 1,
        "nothing": None,
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_npy_and_its_ids(dtype: Dtype) -> None:
    """The header comes first, with a number of rows that is known before."""
    chunks = embedded_chunks("a.jsonl", JSONL)
    file = b"".join(write_npy(iter(chunks), rows=9, dimensions=D, dtype=dtype))
    stored, scales = quantise(all_vectors(chunks), dtype)
    loaded = np.load(io.BytesIO(file), allow_pickle=False)
    assert loaded.dtype == stored.dtype
    assert loaded.tobytes() == stored.tobytes()
    assert loaded.shape == (9, D)
    lines = [json.loads(line) for line in b"".join(write_ids(chunks, dtype=dtype)).splitlines()]
    assert [(line["row"], line["line"], line["id"]) for line in lines] == [
        (n, n + 1, str(n)) for n in range(9)
    ]
    assert all(("scale" in line) == (scales is not None) for line in lines)


def test_npy_with_a_wrong_number_of_rows_is_not_finished() -> None:
    """It would not be one that numpy can read."""
    with pytest.raises(ValueError, match="9"):
        list(write_npy(embedded_chunks("a.jsonl", JSONL), rows=8, dimensions=D))


def test_int8_is_symmetric_with_one_scale_per_vector() -> None:
    """The largest component is 127 or -127, the error at most half a step, zeros stay zeros."""
    vectors = np.concatenate([vectors_for(200) * 3, np.zeros((1, D), np.float32)])
    stored, scales = quantise(vectors, "int8")
    assert scales is not None
    assert scales.dtype == np.float32
    assert np.abs(stored[:-1].astype(int)).max(axis=1).tolist() == [127] * 200
    assert np.abs(stored * scales[:, None] - vectors).max(axis=1).max() <= scales.max() * 0.5001
    assert (scales[-1], stored[-1].tolist()) == (0, [0] * D)
    literal, scale = quantise(np.array([[0.5, -1.0, 0.25, 0.0]], np.float32), "int8")
    assert literal.tolist() == [[64, -127, 32, 0]]
    assert scale is not None
    assert scale.tolist() == [np.float32(1) / np.float32(127)]


def test_float16_is_rounded_to_the_nearest() -> None:
    """Not cut off."""
    stored, scales = quantise(np.array([[0.1, 1 + 2**-11 + 2**-20]], np.float32), "float16")
    assert scales is None
    assert stored.tolist() == [[0.0999755859375, 1 + 2**-10]]
