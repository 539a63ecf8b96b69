"""Reads Parquet by ranges into rows: the footer, then one row group at a time, never the whole file.

It does not know storage or chunks. Columns other than text and id stay in Arrow. pyarrow allocates the
memory that a file declares, and damaged files can crash its process, so jobs read Parquet in a child
process (shared/bulk/inputs/apart.py).
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import numpy as np

from shared.bulk import arrow as pa
from shared.bulk.inputs.allowance import Allowance
from shared.bulk.inputs.delimited import find_columns, other_names
from shared.bulk.inputs.lines import (
    MAX_COLUMNS,
    MAX_RECORD_BYTES,
    MAX_TEXT_BYTES,
    BadRecord,
    check_id,
    check_text,
)
from shared.bulk.inputs.row_sizes import row_sizes, value_sizes
from shared.bulk.inputs.source import ByteSource, read_fully
from shared.bulk.rows import ArrowRow, BadRow, Row
from shared.compression import Truncated
from shared.errors import InvalidInput
from shared.wording import counted

_WINDOW_BYTES = 32 << 20
"""Row groups up to this size are fetched by one request; larger ones column by column, in buffers."""
_BATCH_BYTES = 8 << 20
_BATCH_ROWS = (256, 8, 1)
"""Rows per batch. If they do not fit into memory, the next smaller number is tried: dictionary-encoded
texts may be longer than the encoded size suggests."""
_MAX_FOOTER_BYTES = 16 << 20
_MAX_ROW_GROUPS = 10_000
_MAX_FOOTER_ITEMS = 500_000
"""Items of one list in the footer."""
_SHOWN_CHARS = 100
_MAGIC, _TAIL_BYTES = b"PAR1", 8  # a file ends with the footer's length (4) and the magic (4)


def read_parquet(
    source: ByteSource, text_column: str, id_column: str | None, allowance: Allowance
) -> Iterator[Row | BadRow]:
    """Rows and bad rows, with the other columns as ArrowRow.

    An id that is not text is also kept as a column of its own type. Raises InvalidInput if the file is
    not readable Parquet, lacks a requested column of texts, or is over a limit, by its footer or by its
    content; and what `source.read` raises.
    """
    window = _Window(source)
    file, names = _open(window, allowance)
    text_at, id_at = find_columns(names, text_column, id_column)
    if not _is_text(file.schema_arrow.types[text_at]):
        type_ = str(file.schema_arrow.types[text_at])[:_SHOWN_CHARS]
        raise InvalidInput(
            f"the column {text_column} is of the type {type_}, not of texts: write it as a column of "
            "strings, or name another one with the option text_column",
            field="text_column",
        )
    kept = id_at if id_at is not None and _is_text(file.schema_arrow.types[id_at]) else None
    others = other_names(names, (text_at, kept))
    row = 0
    for group in range(file.metadata.num_row_groups):
        found = file.metadata.row_group(group)
        done = 0
        try:
            for batch in _batches(file, group, window):
                texts = _strings(batch.column(text_at))
                ids = _strings(batch.column(id_at)) if id_at is not None else [None] * len(texts)
                rest = batch.select(list(others)).rename_columns(list(others.values()))
                sizes = row_sizes(rest).tolist()
                for index, text in enumerate(texts):
                    at, record = row + done, ArrowRow(rest, index, sizes[index])
                    done += 1
                    yield _row(at, ids[index], text, record, text_column)
        except _Unbearable:
            raise InvalidInput(
                f"the row at {row + done + 1} cannot be read in the memory that there is: write smaller "
                "values, pages and row groups"
            ) from None
        except _damaged():
            window.raise_failure()
            raise InvalidInput(
                f"the file is damaged from row {row + done + 1} on, "
                f"{counted(found.num_rows - done, 'row')} of its "
                f"row group {group} cannot be read: write it again"
            ) from None
        if done != found.num_rows:
            raise InvalidInput(
                f"the file's row group {group} has {counted(done, 'row')} and says that it has "
                f"{found.num_rows}: write it again"
            )
        row += done


def _damaged() -> tuple[type[Exception], ...]:
    """What is raised for damaged bytes; UnicodeDecodeError for names or messages that are not UTF-8."""
    return OSError, pa.ArrowException, UnicodeDecodeError, Truncated


class _Unbearable(Exception):
    """A single row does not fit into memory. Not a MemoryError, because some of Arrow's errors are."""


class _Window(io.RawIOBase):
    """A source as a file object. Reads within the range that was loaded last are served from memory."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._position = 0
        self._start, self._loaded = 0, b""
        self._failure: Exception | None = None

    @property
    def size(self) -> int:
        return self._source.size

    def load(self, start: int, length: int) -> None:
        self._loaded = b""  # free the old range before the new one is fetched
        self._start, self._loaded = start, self._fetch(start, length)

    def raise_failure(self) -> None:
        """Raise the source's error, if there was one: it must not be reported as damaged bytes."""
        if self._failure is not None:
            raise self._failure

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._source.size - self._position)
        size = left if size < 0 else min(size, left)
        offset = self._position - self._start
        if offset >= 0 and offset + size <= len(self._loaded):
            data = self._loaded[offset : offset + size]
        else:
            data = self._fetch(self._position, size) if size else b""
        self._position += size
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}
        self._position = base[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _fetch(self, start: int, length: int) -> bytes:
        try:
            return read_fully(self._source, start, length)
        except Truncated:
            raise
        except Exception as failure:
            self._failure = failure
            raise


def _open(window: _Window, allowance: Allowance) -> tuple[pa.parquet.ParquetFile, list[str]]:
    """The file and its column names. Checks the footer before any page is read. Raises InvalidInput."""
    try:
        window.seek(-min(_TAIL_BYTES, window.size), io.SEEK_END)
        tail = window.read()
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] == _MAGIC and length > _MAX_FOOTER_BYTES:
            raise InvalidInput(f"the file's footer has {length} bytes, more than {_MAX_FOOTER_BYTES}")
        metadata = pa.parquet.ParquetFile(
            window,
            thrift_string_size_limit=_MAX_FOOTER_BYTES,
            thrift_container_size_limit=_MAX_FOOTER_ITEMS,
        ).metadata
        _check(metadata, allowance)
        buffer = _WINDOW_BYTES // max(1, metadata.num_columns)
        file = pa.parquet.ParquetFile(
            window,
            metadata=metadata,
            buffer_size=min(1 << 20, max(64 << 10, buffer)),
            pre_buffer=False,
        )
        return file, file.schema_arrow.names
    except MemoryError:
        raise InvalidInput("the file's footer cannot be read in the memory that there is") from None
    except _damaged():
        window.raise_failure()
        raise InvalidInput("the file is not a Parquet file that can be read") from None


def _check(metadata: pa.parquet.FileMetaData, allowance: Allowance) -> None:
    """Raises InvalidInput over a limit. Counts encoded bytes; the decoded size may be larger."""
    if metadata.num_columns > MAX_COLUMNS:
        raise InvalidInput(f"the file has {metadata.num_columns} columns, more than {MAX_COLUMNS}")
    if metadata.num_row_groups > _MAX_ROW_GROUPS:
        raise InvalidInput(
            f"the file has {metadata.num_row_groups} row groups, more than {_MAX_ROW_GROUPS}: write "
            "larger ones"
        )
    allowance.check_rows(metadata.num_rows)
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    allowance.check_bytes(sum(group.total_byte_size for group in groups), "unpacked")


def _batches(file: pa.parquet.ParquetFile, group: int, window: _Window) -> Iterator[pa.RecordBatch]:
    """All rows of a row group, each once. Raises _Unbearable if one row does not fit into memory."""
    found = file.metadata.row_group(group)
    columns = [found.column(index) for index in range(found.num_columns)]
    starts = [
        min(column.dictionary_page_offset or column.data_page_offset, column.data_page_offset)
        for column in columns
    ]
    sizes = [column.total_compressed_size for column in columns]
    first = min(starts)
    length = max(start + size for start, size in zip(starts, sizes, strict=True)) - first
    if first >= 0 and 0 < length <= _WINDOW_BYTES:
        window.load(first, length)
    average = 1 + found.total_byte_size // max(1, found.num_rows)
    done = 0
    for most in _BATCH_ROWS:
        rows = max(1, min(most, _BATCH_BYTES // average))
        batches = _whole(file, group, rows, skip=done)
        while True:
            try:  # only the reading: a MemoryError in the caller has other causes
                batch = next(batches, None)
            except MemoryError:
                break
            if batch is None:
                return
            done += batch.num_rows
            yield batch
    raise _Unbearable


def _whole(
    file: pa.parquet.ParquetFile, group: int, rows: int, *, skip: int
) -> Iterator[pa.RecordBatch]:
    """A row group's batches without its first `skip` rows."""
    for batch in file.iter_batches(batch_size=rows, row_groups=[group], use_threads=False):
        behind = batch.slice(min(skip, batch.num_rows))
        skip = max(0, skip - batch.num_rows)
        # Split by bytes: all texts of a batch become Python strings at once.
        pieces = row_sizes(behind).cumsum() // _BATCH_BYTES
        starts = [0, *(np.flatnonzero(np.diff(pieces)) + 1).tolist(), behind.num_rows]
        for start, end in itertools.pairwise(starts):
            if end > start:
                yield behind.slice(start, end - start)


def _row(
    row: int, given: str | BadRecord | None, text: str | BadRecord | None, record: ArrowRow, name: str
) -> Row | BadRow:
    known: str | None = None
    try:
        if isinstance(given, BadRecord):
            raise given
        known = check_id(given, "the id") if given else None
        if isinstance(text, BadRecord):
            raise BadRecord(text.code, text.message, id=known)
        if not isinstance(text, str):
            raise BadRecord("missing_text", f"{name} is null")
        check_text(text, name, id=known)
        if record.size > MAX_RECORD_BYTES:
            raise BadRecord("row_too_large", f"the row has more than {MAX_RECORD_BYTES} bytes")
    except BadRecord as bad:
        return BadRow(row + 1, known, bad.code, bad.message)
    return Row(row, row + 1, known or str(row), text, record)


def _is_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        return _is_text(type_.value_type)
    return bool(
        pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
    )


def _strings(column: pa.Array) -> list[str | BadRecord | None]:
    """Values as texts. pyarrow does not check UTF-8 when it reads, so a value may be a BadRecord."""
    sizes = value_sizes(column)
    if sizes.max(initial=0) <= MAX_TEXT_BYTES:
        try:
            return [value if value is None else str(value) for value in column.to_pylist()]
        except UnicodeDecodeError:
            pass
    return [_string(value, size) for value, size in zip(column, sizes.tolist(), strict=True)]


def _string(value: pa.Scalar, size: int) -> str | BadRecord | None:
    if size > MAX_TEXT_BYTES:
        return BadRecord("text_too_long", f"the value has more than {MAX_TEXT_BYTES} bytes")
    try:
        found = value.as_py()
    except UnicodeDecodeError:
        return BadRecord("invalid_utf8", "the value is not valid UTF-8")
    return found if found is None else str(found)
