"""Embedded chunks to output files, chunk by chunk, as blocks of bytes: Parquet, JSONL, .npy and its ids.

A chunk is an Arrow table as shared/bulk/rows.py describes it; chunks come in the order of the input.
Equal chunks give equal bytes: a file has no time and nothing random. It does not know storage or jobs.

dtype of the vectors in the output:
    float32  as they are
    float16  rounded to the nearest
    int8     scalar quantisation, symmetric, one scale for each vector: scale = max |v| / 127 (float32),
             int8[i] = v[i] / scale rounded to the nearest, and v[i] is about scale * int8[i], off by at
             most scale / 2. A vector of zeros has scale 0. The scale is a column or field of its own.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from shared.bulk import arrow as pa
from shared.bulk.outputs.json_columns import other_fields
from shared.bulk.rows import embedded, free_names, vector_array, vectors_of
from shared.cards import Task
from shared.contracts import FloatMatrix

Dtype = Literal["float32", "float16", "int8"]
Quantised: TypeAlias = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.int8]

ROW_GROUP_BYTES = 16 << 20
"""Chunks are gathered to about so much: readers are slow with many small row groups."""


def quantise(vectors: FloatMatrix, dtype: Dtype) -> tuple[Quantised, NDArray[np.float32] | None]:
    """(N, D) float32 -> (N, D) of dtype, and for int8 the scales (N,) float32."""
    if dtype == "float32":
        return vectors, None
    if dtype == "float16":
        return vectors.astype(np.float16), None
    scales = np.abs(vectors).max(axis=1) / np.float32(127)
    divisors = np.where(scales > 0, scales, np.float32(1))
    return np.rint(vectors / divisors[:, None]).astype(np.int8), scales


def write_parquet(
    chunks: Iterable[pa.Table],
    *,
    dimensions: int,
    dtype: Dtype = "float32",
    task: Task = "embedding",
    metadata: Mapping[str, str] | None = None,
) -> Iterator[bytes]:
    """Columns: row, id, text, the input's others, tokens, truncated, scale (of int8), vector.

    vector: fixed_size_list<dtype>[dimensions]; of other tasks the columns of rows.py. The file's
    metadata: what is given, and blitz.vector, a JSON object that says how to read the vectors.
    """
    sink = _Sink()
    about = {**(metadata or {}), "blitz.vector": _about(dimensions, dtype)}
    writer: pa.parquet.ParquetWriter | None = None
    empty = _nothing(dimensions, task)
    for table in _row_groups(chunks):
        if not table.num_rows:
            empty = table
            continue
        table = _output(table, dtype)
        writer = writer or _writer(sink, table.schema, about)
        writer.write_table(table, row_group_size=table.num_rows)
        yield sink.take()
    writer = writer or _writer(sink, _output(empty, dtype).schema, about)
    writer.close()
    yield sink.take()


def write_jsonl(chunks: Iterable[pa.Table], *, dtype: Dtype = "float32") -> Iterator[bytes]:
    """A line for each row: {"id", "embedding", "scale" (of int8), "text", other input fields}.

    A sparse model's line has "indices" and "values" instead of "embedding", and a multi-vector model's
    "embedding" is a list of vectors. An id that the input has as a number is a number. "truncated": true
    is there for texts that were cut.
    """
    for chunk in chunks:
        numbers, scales = _numbers_of(chunk, dtype)
        ids, texts = chunk["id"].to_pylist(), chunk["text"].to_pylist()
        lines: list[bytes] = []
        cut = chunk["truncated"].to_pylist()
        for at, others in enumerate(other_fields(chunk)):
            line: dict[str, object] = {
                "id": ids[at],
                **{name: rows[at] for name, rows in numbers.items()},
            }
            if scales is not None:
                line["scale"] = scales[at]
            if cut[at]:
                line["truncated"] = True
            line["text"] = texts[at]
            if not numbers.keys().isdisjoint(others):  # a sparse model's are no names of our own alone
                others = dict(zip(free_names(others, numbers), others.values(), strict=True))
            lines.append(_dump({**line, **others}))
        yield b"".join(lines)


def write_npy(
    chunks: Iterable[pa.Table], *, rows: int, dimensions: int, dtype: Dtype = "float32"
) -> Iterator[bytes]:
    """A numpy file (rows, dimensions). Raises ValueError at the end if the chunks are not `rows`."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype).newbyteorder("<"))
    shape = {"descr": descr, "fortran_order": False, "shape": (rows, dimensions)}
    np.lib.format.write_array_header_1_0(header, shape)
    yield header.getvalue()
    written = 0
    for chunk in chunks:
        vectors, _ = quantise(vectors_of(chunk), dtype)
        written += len(vectors)
        yield vectors.astype(vectors.dtype.newbyteorder("<"), copy=False).tobytes()
    if written != rows:
        raise ValueError(f"the chunks hold {written} rows, not {rows}")


def write_ids(chunks: Iterable[pa.Table], *, dtype: Dtype = "float32") -> Iterator[bytes]:
    """What a .npy file's rows are, a line for each: {"row", "line", "id", "scale" (of int8)}.

    And "truncated": true for texts that were cut.
    """
    for chunk in chunks:
        table = chunk.select(["row", "line", "id"])
        _, scales = quantise(vectors_of(chunk), dtype)
        lines: list[bytes] = []
        cut = chunk["truncated"].to_pylist()
        for at, line in enumerate(table.to_pylist()):
            scale = {} if scales is None else {"scale": scales[at]}
            lines.append(_dump({**line, **scale, **({"truncated": True} if cut[at] else {})}))
        yield b"".join(lines)


class _Sink(io.RawIOBase):
    """A file that hands out what was written to it since the last time."""

    def __init__(self) -> None:
        self._held: list[bytes] = []

    def write(self, data: Any, /) -> int:
        self._held.append(bytes(data))
        return len(self._held[-1])

    def writable(self) -> bool:
        return True

    def take(self) -> bytes:
        taken = b"".join(self._held)
        self._held.clear()
        return taken


def _writer(sink: _Sink, schema: pa.Schema, metadata: Mapping[str, str]) -> pa.parquet.ParquetWriter:
    # Vectors hardly ever repeat, and nobody searches for the least of their components.
    searched = [field.name for field in schema if field.name != "vector" and not _is_list(field.type)]
    schema = schema.with_metadata(dict(metadata))
    return pa.parquet.ParquetWriter(
        sink, schema, compression="zstd", use_dictionary=searched, write_statistics=searched
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind))


def _row_groups(chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """What is written together. Chunks whose rows all failed pass as they are, for their columns."""
    gathered: list[pa.Table] = []
    for chunk in chunks:
        if not chunk.num_rows:
            yield chunk
            continue
        gathered.append(chunk)
        if sum(table.nbytes for table in gathered) >= ROW_GROUP_BYTES:
            yield pa.concat_tables(gathered)
            gathered.clear()
    if gathered:
        yield pa.concat_tables(gathered)


def _numbers_of(
    chunk: pa.Table, dtype: Dtype
) -> tuple[dict[str, Sequence[Any]], NDArray[np.float32] | None]:
    """What a line of JSON has of each row's numbers, by field; and the scales of int8."""
    if "indices" in chunk.column_names and "vector" not in chunk.column_names:
        return {name: _lists(chunk[name]) for name in ("indices", "values")}, None
    if not pa.types.is_fixed_size_list(chunk["vector"].type):
        return {"embedding": _lists(chunk["vector"])}, None
    vectors, scales = quantise(vectors_of(chunk), dtype)
    return {"embedding": list(vectors)}, scales


def _lists(column: pa.ChunkedArray) -> list[NDArray[Any]]:
    """Each row's list as an array, of one dimension or of two."""
    lists = column.combine_chunks()
    values = lists.flatten()
    if pa.types.is_fixed_size_list(values.type):
        numbers = values.flatten().to_numpy().reshape(-1, values.type.list_size)
    else:
        numbers = values.to_numpy()
    ends = np.cumsum(lists.value_lengths().to_numpy())
    return np.split(numbers, ends[:-1]) if len(ends) else []


def _output(chunk: pa.Table, dtype: Dtype) -> pa.Table:
    if "vector" not in chunk.column_names or not pa.types.is_fixed_size_list(chunk["vector"].type):
        return chunk.drop_columns(["line"] if "line" in chunk.column_names else [])
    vectors, scales = quantise(vectors_of(chunk), dtype)
    table = chunk.drop_columns(["vector", *(["line"] if "line" in chunk.column_names else [])])
    if scales is not None:
        table = table.append_column("scale", pa.array(scales))
    return table.append_column("vector", vector_array(vectors))


def _nothing(dimensions: int, task: Task) -> pa.Table:
    names = {"row": pa.int64(), "id": pa.string(), "text": pa.string()}
    vectors = np.empty((0, dimensions), np.float32)
    return embedded(pa.schema(names).empty_table(), vectors, [], task=task)


def _about(dimensions: int, dtype: Dtype) -> str:
    about: dict[str, object] = {"dtype": dtype, "dimensions": dimensions}
    if dtype == "int8":
        about["quantisation"] = "symmetric, one scale per vector"
        about["dequantise"] = "scale * vector[i]"
    return orjson.dumps(about).decode()


def _dump(line: dict[str, object]) -> bytes:
    return orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
