"""CSV and TSV with a header to rows. Cells may hold line ends inside quotes.

It does not know files, compression or chunks.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator

from shared.bulk.formats.lines import (
    MAX_COLUMNS,
    MAX_NAME_BYTES,
    MAX_RECORD_BYTES,
    BadRecord,
    RawRecord,
    check_id,
    check_text,
    decode,
    parse_records,
)
from shared.bulk.rows import OWN_COLUMNS, BadRow, Row, free_names
from shared.errors import InvalidInput

_LINE_END = b"\r\n"  # a line of spaces or tabs is a record


def read_delimited(
    records: Iterable[RawRecord | BadRow], delimiter: str, text_column: str, id_column: str | None
) -> Iterator[Row | BadRow]:
    """The first record is the header. Raises InvalidInput if it lacks a column that is asked for.

    id_column None: "id" where there is such a column. Columns without a name are called column_N.
    """
    csv.field_size_limit(MAX_RECORD_BYTES)  # the module's own limit, for the whole process: 128 KiB
    records = iter(records)
    header = _read_header(records, delimiter)
    if header is None:
        return
    parse = _parser(header, delimiter, text_column, id_column)
    yield from parse_records(records, parse, _LINE_END)


def find_columns(names: list[str], text_column: str, id_column: str | None) -> tuple[int, int | None]:
    """Where text and id stand.

    Raises InvalidInput naming the option that would help, and for too many columns or too long a name.
    """
    if len(names) > MAX_COLUMNS:
        raise InvalidInput(f"the file has {len(names)} columns, more than {MAX_COLUMNS}")
    for number, name in enumerate(names, 1):
        if len(name.encode(errors="replace")) > MAX_NAME_BYTES:
            raise InvalidInput(f"the name of column {number} has more than {MAX_NAME_BYTES} bytes")
    if text_column not in names:
        raise InvalidInput(
            f"the file has no column {text_column}: say with the option text_column which one has the "
            "texts",
            field="text_column",
        )
    if id_column is not None and id_column not in names:
        raise InvalidInput(f"the file has no column {id_column}", field="id_column")
    wanted = "id" if id_column is None else id_column
    return names.index(text_column), names.index(wanted) if wanted in names else None


def other_names(names: list[str], taken: tuple[int | None, ...]) -> dict[int, str]:
    """What the columns that are not `taken` are called in chunks and outputs, by their positions."""
    others = [index for index in range(len(names)) if index not in taken]
    free = free_names((names[index] or f"column_{index + 1}" for index in others), OWN_COLUMNS)
    return dict(zip(others, free, strict=True))


def _read_header(records: Iterator[RawRecord | BadRow], delimiter: str) -> list[str] | None:
    """None if the file has no record."""
    for record in records:
        try:
            if isinstance(record, BadRow):
                raise BadRecord(record.code, record.message)
            if record.data.strip(_LINE_END):
                return _cells(record.data, delimiter)
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
        cells = _cells(record.data, delimiter)
        if len(cells) != len(header):
            message = f"the record has {len(cells)} cells, the header {len(header)}"
            raise BadRecord("wrong_number_of_cells", message)
        given = check_id(cells[id_at], id_name) if id_at is not None else ""
        text = check_text(cells[text_at], text_column, id=given or None)
        fields = {name: cells[index] for index, name in others.items()}
        return (Row(row, record.line, given or str(row), text, fields),)

    return parse


def _cells(data: bytes, delimiter: str) -> list[str]:
    try:
        return next(csv.reader((decode(data),), delimiter=delimiter))
    except csv.Error:
        raise BadRecord("invalid_csv", "the record is not valid CSV") from None
