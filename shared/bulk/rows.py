"""Rows of bulk embedding, the chunks that they are cut into, and a chunk's bytes.

A chunk is an Arrow table (as bytes: one Arrow IPC file) with these columns:
    row    int64   0-based number of the record in the input, bad ones counted
    line   int64   1-based line that it begins at; in Parquet, row + 1
    part, parts   int32   only of OpenAI Batch: TEXT_INDEX and TEXT_COUNT
    id     string  as given, a number in digits; the row's number where the input has none
    text   string
then `fields` (string: a JSON object of the other input fields, or null) if the input is JSON, or the
other columns themselves with their types if it is CSV or Parquet, or nothing if it is plain text.
A text list of one request gives one Arrow row per text, with the same row, line, id and fields; it may
go on in the next chunk. An embedded chunk has these columns, too:
    tokens int32   tokens fed
    truncated bool whether the text was longer than the model reads, and cut; null if that is unknown
    vector fixed_size_list<float32>[D]; of a multi-vector model list<fixed_size_list<float32>[D]>; of a
        sparse model there are `indices` list<int32> and `values` list<float32> instead

It does not know formats, storage or models. Nothing here puts a text into an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import orjson

from shared.bulk import arrow as pa
from shared.cards import Task
from shared.contracts import FloatMatrix, SparseRow

TEXT_INDEX, TEXT_COUNT = "part", "parts"
"""Columns: a text's index in its OpenAI Batch request, and how many texts that has. The words are of an
earlier version: chunks of jobs that run while the service is updated have them."""

CHUNK_ROWS = 512
CHUNK_BYTES = 256_000

OWN_COLUMNS = frozenset(
    (
        "row",
        "line",
        TEXT_INDEX,
        TEXT_COUNT,
        "id",
        "text",
        "fields",
        "tokens",
        "truncated",
        "vector",
        "scale",
        "embedding",
    )
)
"""An input column of such a name is called input_NAME in chunks and outputs."""
OWN_FIELDS = frozenset(("id", "text", "embedding", "scale", "truncated"))
"""The same for JSON fields."""


@dataclass(frozen=True, slots=True)
class ArrowRow:
    """One row of a RecordBatch, not copied out of it yet. size: its share of the batch's bytes."""

    batch: pa.RecordBatch = field(repr=False)
    index: int
    size: int


@dataclass(frozen=True, slots=True)
class Row:
    """One text to embed.

    fields: what else the input has of it: a JSON object as text ("{}" if empty), CSV cells by column
        name, a record of a Parquet file; None if the format has no fields.
    text_index, text_count: which of the texts of its OpenAI Batch request this is, from 0, and how many
    it
        has; None in other formats.
    """

    row: int
    line: int
    id: str
    text: str = field(repr=False)
    fields: str | Mapping[str, str] | ArrowRow | None = field(default=None, repr=False)
    text_index: int | None = None
    text_count: int | None = None

    @property
    def size(self) -> int:
        """Bytes of text and fields."""
        match self.fields:
            case None:
                size = 0
            case str():
                size = _bytes(self.fields)
            case ArrowRow():
                size = self.fields.size
            case cells:
                size = sum(map(_bytes, cells.values()))
        return size + _bytes(self.text)


class BadRow(msgspec.Struct, frozen=True):
    """A record that cannot be embedded, and why. message: for the user; never quotes the record."""

    line: int
    id: str | None
    code: str
    message: str

    def to_json(self) -> bytes:
        """A line of a bad rows' file, without newline: {"line", "id"?, "code", "message"}."""
        known = {} if self.id is None else {"id": self.id}
        return orjson.dumps({"line": self.line, **known, "code": self.code, "message": self.message})

    @classmethod
    def from_json(cls, line: bytes) -> BadRow:
        """What `to_json` wrote."""
        found = orjson.loads(line)
        return cls(found["line"], found.get("id"), found["code"], found["message"])


class Chunk(msgspec.Struct, frozen=True):
    """index: 0-based. table: the columns above. bad: in the order of their lines."""

    index: int
    table: pa.Table
    bad: tuple[BadRow, ...] = ()

    def to_arrow(self) -> bytes:
        """The good rows as an Arrow file."""
        return pack_table(self.table)

    def bad_to_json(self) -> bytes:
        """The bad rows as JSON lines."""
        return b"".join(bad.to_json() + b"\n" for bad in self.bad)


def free_names(names: Iterable[str], own: Collection[str], taken: Iterable[str] = ()) -> Iterator[str]:
    """For each of `names`: input_NAME if we use NAME ourselves; then NAME_2, NAME_3 if it is taken.

    `taken`, and the names before it. Each number is tried once, however many names are alike.
    """
    used = set(taken)
    following: dict[str, int] = {}
    for name in names:
        if name in own:
            name = f"input_{name}"
        free = name
        if free in used:
            number = following.get(name, 2)
            while (free := f"{name}_{number}") in used:
                number += 1
            following[name] = number + 1
        used.add(free)
        yield free


def cut_chunks(
    rows: Iterable[Row | BadRow], max_rows: int = CHUNK_ROWS, max_bytes: int = CHUNK_BYTES
) -> Iterator[Chunk]:
    """Chunks of at most `max_rows` rows, bad ones counted, and `max_bytes` of texts and fields.

    Where they are cut depends on the rows alone. A row larger than max_bytes is a chunk of its own.
    """
    draft = _Draft(0)
    for row in rows:
        size = row.size if isinstance(row, Row) else 0
        if draft.count == max_rows or (draft.rows and draft.size + size > max_bytes):
            yield draft.finish()
            draft = _Draft(draft.index + 1)
        draft.add(row, size)
    if draft.count:
        yield draft.finish()


def embedded(
    table: pa.Table,
    vectors: FloatMatrix,
    tokens: Sequence[int],
    truncated: Sequence[bool | None] | None = None,
    task: Task = "embedding",
) -> pa.Table:
    """A chunk's rows (all or some of them) with their vectors (N, D) and token counts (N).

    truncated: (N) whether each text was cut; None: unknown. task: of the model; for a sparse model the
    vectors are (N,) SparseRow, for a multi-vector model (N,) of (T, D), and (0, D) if there are none.
    """
    cut = pa.nulls(table.num_rows, pa.bool_()) if truncated is None else pa.array(truncated, pa.bool_())
    columns = {"tokens": pa.array(tokens, pa.int32()), "truncated": cut}
    columns |= _columns_for(vectors, task)
    taken = table.column_names
    if not columns.keys().isdisjoint(taken):  # a sparse model's are no names that inputs cannot have
        table = table.rename_columns(list(free_names(taken, columns)))
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def vector_array(vectors: np.ndarray[Any, Any]) -> pa.FixedSizeListArray:
    """(N, D) of float32, float16 or int8 -> N lists of D."""
    values = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])


def _columns_for(vectors: Any, task: Task) -> dict[str, pa.Array]:
    """A chunk's columns of numbers, by name."""
    if task == "embedding":
        return {"vector": vector_array(vectors)}
    counts = [len(row.values) if isinstance(row, SparseRow) else len(row) for row in vectors]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    if task == "multi-vector":
        rows = np.concatenate(vectors) if len(vectors) else vectors
        return {"vector": pa.ListArray.from_arrays(offsets, vector_array(rows.astype(np.float32)))}
    lists = {"indices": (np.int32, pa.int32()), "values": (np.float32, pa.float32())}
    return {
        name: pa.ListArray.from_arrays(
            offsets,
            pa.array(
                np.concatenate([np.empty(0, dtype), *(getattr(row, name) for row in vectors)]), kind
            ),
        )
        for name, (dtype, kind) in lists.items()
    }


def vectors_of(chunk: pa.Table) -> FloatMatrix:
    """(N, D) float32."""
    column = chunk["vector"]
    values = column.combine_chunks().flatten().to_numpy()
    vectors: FloatMatrix = values.reshape(-1, column.type.list_size)
    return vectors


def pack_table(table: pa.Table) -> bytes:
    """One Arrow IPC file of one record batch. The same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpack_embedded(data: bytes) -> pa.Table:
    """An embedded chunk. One of an earlier version has no column `truncated`, and gets it with nulls."""
    table = unpack_table(data)
    if "truncated" not in table.column_names:
        at = table.column_names.index("tokens") + 1
        table = table.add_column(at, "truncated", pa.nulls(table.num_rows, pa.bool_()))
    return table


def unpack_table(data: bytes) -> pa.Table:
    """The table of an Arrow file's bytes."""
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


class _Draft(msgspec.Struct):
    index: int
    rows: list[Row] = msgspec.field(default_factory=list)
    bad: list[BadRow] = msgspec.field(default_factory=list)
    size: int = 0

    @property
    def count(self) -> int:
        return len(self.rows) + len(self.bad)

    def add(self, row: Row | BadRow, size: int) -> None:
        self.size += size
        if isinstance(row, Row):
            self.rows.append(row)
        else:
            self.bad.append(row)

    def finish(self) -> Chunk:
        return Chunk(self.index, _table(self.rows), tuple(self.bad))


def _table(rows: list[Row]) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "row": pa.array([row.row for row in rows], pa.int64()),
        "line": pa.array([row.line for row in rows], pa.int64()),
    }
    if rows and rows[0].text_index is not None:
        columns[TEXT_INDEX] = pa.array([row.text_index for row in rows], pa.int32())
        columns[TEXT_COUNT] = pa.array([row.text_count for row in rows], pa.int32())
    columns["id"] = pa.array([row.id for row in rows], pa.string())
    columns["text"] = pa.array([row.text for row in rows], pa.string())
    fields = [row.fields for row in rows]
    match fields[0] if fields else None:
        case None:
            pass
        case str():
            values = [None if value == "{}" else value for value in fields]
            columns["fields"] = pa.array(values, pa.string())
        case ArrowRow():
            columns |= _columns_of(fields)
        case cells:
            for name in cells:
                values = [row[name] for row in fields if isinstance(row, Mapping)]
                columns[name] = pa.array(values, pa.string())
    return pa.table(columns)


def _columns_of(fields: Sequence[object]) -> dict[str, pa.ChunkedArray]:
    """Of records. Neighbours in one batch are taken out of it together."""
    records = [value for value in fields if isinstance(value, ArrowRow)]
    slices: list[pa.RecordBatch] = []
    start = 0
    for end in range(1, len(records) + 1):
        first, last = records[start], records[end - 1]
        if end < len(records):
            following = records[end]
            if following.batch is last.batch and following.index == last.index + 1:
                continue
        slices.append(first.batch.slice(first.index, end - start))
        start = end
    others = pa.Table.from_batches(slices).combine_chunks()
    return {
        name: _used(column) for name, column in zip(others.column_names, others.columns, strict=True)
    }


def _used(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary column with only the values it uses: each chunk is written with its dictionary."""
    if not pa.types.is_dictionary(column.type):
        return column
    arrays: list[pa.Array] = []
    for array in column.chunks:
        used, indices = np.unique(array.indices.fill_null(0).to_numpy(), return_inverse=True)
        kept = pa.array(indices, array.type.index_type, mask=array.indices.is_null().to_numpy(False))
        values = array.dictionary.take(pa.array(used)) if len(array.dictionary) else array.dictionary
        arrays.append(pa.DictionaryArray.from_arrays(kept, values, ordered=array.type.ordered))
    return pa.chunked_array(arrays, column.type)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
