"""Parses CSV and TSV with a header into rows. Quoted cells may contain line ends.

It does not know files, compression or chunks.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator

from shared.bulk.inputs.lines import (
    BOM,
    MAX_COLUMNS,
    MAX_NAME_BYTES,
    MAX_RECORD_BYTES,
    BadRecord,
    Quotes,
    RawRecord,
    check_id,
    check_text,
    decode,
    parse_records,
    read_records,
)
from shared.bulk.rows import OWN_COLUMNS, BadRow, Row, free_names
from shared.compression import Truncated
from shared.errors import InvalidInput

DELIMITERS = (",", ";", "\t", "|")
"""Candidates; the header decides. Excel's CSV separator depends on the user's locale."""

_LINE_END = b"\r\n"  # stripped to find blank lines; a line of spaces or tabs is a record
_SEPARATOR = re.compile(rb'"?sep=([,;|:!#$%&*+/^~\t])"?\s*', re.IGNORECASE)
"""Excel's optional first line `sep=;`, which is not a row."""
_HEAD_BYTES = 64 << 10
_SHOWN_NAMES, _SHOWN_CHARS = 30, 50


def read_delimited(
    blocks: Iterable[bytes], delimiter: str, text_column: str, id_column: str | None
) -> Iterator[Row | BadRow]:
    """Rows in the order of the file. The first record is the header.

    delimiter: tried first; one of DELIMITERS is used instead if only it yields the text column.
    id_column: None: "id" if there is such a column. Columns without a name are called column_N. Spaces
    around names are ignored. Raises InvalidInput if a requested column is missing, and as read_records.
    """
    csv.field_size_limit(MAX_RECORD_BYTES)  # process-wide; the csv module's default is 128 KiB
    text_column, id_column = text_column.strip(), id_column and id_column.strip()
    first, blocks = _first_line(blocks)
    if (separator := _SEPARATOR.fullmatch(first)) is not None:
        delimiter = separator[1].decode()
    else:
        delimiter = _delimiter_of(first, delimiter, text_column)
    records = read_records(blocks, Quotes(delimiter))
    if separator is not None:
        next(record for record in records if isinstance(record, BadRow) or record.data.strip(_LINE_END))
    header = _read_header(records, delimiter)
    if header is None:
        return
    parse = _parser(header, delimiter, text_column, id_column)
    yield from parse_records(records, parse, _LINE_END)


def find_columns(names: list[str], text_column: str, id_column: str | None) -> tuple[int, int | None]:
    """Positions of the text column and of the id column (None without one).

    Raises InvalidInput if a column is missing or ambiguous (naming the option that selects it), and for
    too many columns or too long a name.
    """
    if len(names) > MAX_COLUMNS:
        raise InvalidInput(f"the file has {len(names)} columns, more than {MAX_COLUMNS}")
    for number, name in enumerate(names, 1):
        if len(name.encode(errors="replace")) > MAX_NAME_BYTES:
            raise InvalidInput(f"the name of column {number} has more than {MAX_NAME_BYTES} bytes")
    if text_column not in names:
        raise InvalidInput(
            f"the file has no column {text_column}, it has {_shown(names)}: say with the option "
            "text_column which one has the texts",
            field="text_column",
        )
    if id_column is not None and id_column not in names:
        raise InvalidInput(
            f"the file has no column {id_column}, it has {_shown(names)}", field="id_column"
        )
    wanted = "id" if id_column is None else id_column
    for name, option in ((text_column, "text_column"), (wanted, "id_column")):
        if names.count(name) > 1:
            raise InvalidInput(
                f"the file has {names.count(name)} columns {name}: which one counts cannot be known",
                field=option,
            )
    return names.index(text_column), names.index(wanted) if wanted in names else None


def other_names(names: list[str], taken: tuple[int | None, ...]) -> dict[int, str]:
    """Position -> name in chunks and outputs, of the columns that are not `taken`."""
    others = [index for index in range(len(names)) if index not in taken]
    free = free_names((names[index] or f"column_{index + 1}" for index in others), OWN_COLUMNS)
    return dict(zip(others, free, strict=True))


def _shown(names: list[str]) -> str:
    """The names on one line, escaped and shortened."""
    shown = ", ".join(
        json.dumps(name[:_SHOWN_CHARS], ensure_ascii=False) for name in names[:_SHOWN_NAMES]
    )
    more = len(names) - _SHOWN_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _first_line(blocks: Iterable[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first non-empty line without its end, at most _HEAD_BYTES; and all of `blocks` again."""
    iterator, taken, head = iter(blocks), list[bytes](), b""

    def all_blocks() -> Iterator[bytes]:
        yield from taken
        taken.clear()
        if broken:
            raise Truncated
        yield from iterator

    broken = False
    try:
        while len(head) < _HEAD_BYTES and b"\n" not in head:
            taken.append(next(iterator))
            head = (head + taken[-1]).removeprefix(BOM).lstrip(_LINE_END)
    except StopIteration:
        pass
    except Truncated:
        broken = True
    return head.partition(b"\n")[0][:_HEAD_BYTES].removesuffix(b"\r"), all_blocks()


def _delimiter_of(first: bytes, usual: str, text_column: str) -> str:
    line = first.decode(errors="replace")
    for delimiter in (usual, *DELIMITERS):
        try:
            if text_column in map(str.strip, next(csv.reader((line,), delimiter=delimiter), [])):
                return delimiter
        except csv.Error:
            continue
    return usual


def _read_header(records: Iterator[RawRecord | BadRow], delimiter: str) -> list[str] | None:
    """The names of the first record; None if the file has none. Raises InvalidInput."""
    for record in records:
        try:
            if isinstance(record, BadRow):
                raise BadRecord(record.code, record.message)
            if record.data.strip(_LINE_END):
                return [name.strip() for name in _cells(record, delimiter)]
        except BadRecord as bad:
            raise InvalidInput(f"the header cannot be read: {bad.message}") from None
    return None


def _parser(
    header: list[str], delimiter: str, text_column: str, id_column: str | None
) -> Callable[[int, RawRecord], tuple[Row]]:
    text_at, id_at = find_columns(header, text_column, id_column)
    id_name = "id" if id_column is None else id_column
    others = other_names(header, (text_at, id_at))

    def parse(row: int, record: RawRecord) -> tuple[Row]:
        cells = _cells(record, delimiter)
        if len(cells) != len(header):
            lines = record.data.count(b"\n", 0, -1)
            until = f", to line {record.line + lines}," if lines else ""
            message = f"the record{until} has {len(cells)} cells, the header {len(header)}"
            raise BadRecord("wrong_number_of_cells", message)
        given = check_id(cells[id_at], id_name) if id_at is not None else ""
        text = check_text(cells[text_at], text_column, id=given or None)
        fields = {name: cells[index] for index, name in others.items()}
        return (Row(row, record.line, given or str(row), text, fields),)

    return parse


def _cells(record: RawRecord, delimiter: str) -> list[str]:
    """Raises BadRecord, or InvalidInput where a stray quote may have joined several rows."""
    text = decode(record.data)
    lines = record.data.count(b"\n", 0, -1)
    try:
        return next(csv.reader((text,), delimiter=delimiter, strict=lines > 0))
    except csv.Error:
        if lines:
            raise InvalidInput(
                f"a quote that opens in line {record.line} closes within a cell by line "
                f"{record.line + lines}, so that the rows between cannot be told apart: close it, or "
                "double it if it belongs to the text"
            ) from None
        raise BadRecord("invalid_csv", "the record is not valid CSV") from None
