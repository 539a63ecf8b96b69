"""Parses JSON lines {"id"?, "text", ...} and plain text lines into rows.

It does not know files, compression or chunks. Other fields are kept byte for byte, so that numbers
beyond a float's precision do not change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from shared.bulk.inputs.lines import (
    MAX_COLUMNS,
    BadRecord,
    RawRecord,
    check_id,
    check_text,
    decode,
    parse_records,
)
from shared.bulk.rows import OWN_FIELDS, BadRow, Row, free_names
from shared.errors import InvalidInput

MAX_DEPTH = 64
"""Depth of nested lists and objects. Readers of the output fail at a few hundred."""

_NO_OBJECT = ("invalid_json_line", "invalid_utf8")
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRING = msgspec.json.Decoder(str)
_ABSENT = msgspec.Raw(b"null")
_TEXTS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_SHAPE = bytes(set(range(256)) - set(b"[]{}:"))


def read_jsonl(
    records: Iterable[RawRecord | BadRow], text_column: str, id_column: str
) -> Iterator[Row | BadRow]:
    """One Row per record, with text, id and the other fields; a BadRow for each invalid one.

    An id may be a string or a number; a number is also kept in the fields as it was written. Raises
    InvalidInput if the last record is cut off.
    """

    def parse(row: int, record: RawRecord) -> tuple[Row, ...]:
        values = read_line(record)
        given, shown = _take_id(values, id_column)
        text = _take_text(values, text_column, given)
        fields = {"id": shown} if shown is not None else {}
        names = free_names(values, OWN_FIELDS, fields)
        fields |= zip(names, values.values(), strict=True)
        return (Row(row, record.line, given or str(row), text, write_object(fields)),)

    return parse_records(records, parse)


def read_text(records: Iterable[RawRecord | BadRow]) -> Iterator[Row | BadRow]:
    """One Row per line, whose text is the line without its line end."""

    def parse(row: int, record: RawRecord) -> tuple[Row, ...]:
        line = record.data.removesuffix(b"\n").removesuffix(b"\r")
        text = check_text(decode(line), "the line", id=None)
        return (Row(row, record.line, str(row), text),)

    return parse_records(records, parse)


def read_line(record: RawRecord) -> dict[str, msgspec.Raw]:
    """As read_object. Raises InvalidInput if the last line is an incomplete object."""
    try:
        return read_object(record.data)
    except BadRecord:
        if not record.data.endswith(b"\n") and _is_cut(record.data):
            raise InvalidInput(
                f"the file ends in the middle of line {record.line}, it is cut off: send it whole"
            ) from None
        raise


def looks_like_object(line: bytes) -> bool:
    """Whether the line is a JSON object, even if it is over a limit."""
    try:
        read_object(line)
    except BadRecord as bad:
        return bad.code not in _NO_OBJECT
    return True


def read_object(line: bytes) -> dict[str, msgspec.Raw]:
    """Field -> undecoded value of a JSON object. Raises BadRecord."""
    decode(line)  # check UTF-8 here: msgspec does not check values that it skips
    _check_shape(line)
    try:
        return _OBJECT.decode(line)
    except (msgspec.DecodeError, RecursionError):
        raise BadRecord("invalid_json_line", "the line is not a JSON object") from None


def write_object(values: dict[str, msgspec.Raw]) -> str:
    """A JSON object of fields whose values are encoded already."""
    return msgspec.json.encode(values).decode() if values else "{}"


def read_string(value: msgspec.Raw) -> str | None:
    """The string; None if the value is not a JSON string."""
    return _STRING.decode(value) if bytes(memoryview(value)[:1]) == b'"' else None


def _is_cut(line: bytes) -> bool:
    if not line.lstrip().startswith(b"{"):
        return False
    try:
        msgspec.json.decode(line.decode(errors="ignore"), type=msgspec.Raw)
    except msgspec.DecodeError as error:
        return "truncated" in str(error)
    return False


def _check_shape(line: bytes) -> None:
    """Raises BadRecord for too many fields or too deep nesting, before allocating objects."""
    if line.count(b"[") + line.count(b"{") <= MAX_DEPTH and line.count(b":") <= MAX_COLUMNS:
        return
    shape = np.frombuffer(_TEXTS.sub(b"", line).translate(None, _NO_SHAPE), np.uint8)
    steps = np.isin(shape, (ord("["), ord("{"))).astype(np.int8)
    steps -= np.isin(shape, (ord("]"), ord("}")))
    depths = steps.cumsum(dtype=np.int32)
    if depths.max(initial=0) > MAX_DEPTH:
        message = f"the line has more than {MAX_DEPTH} levels of lists and objects"
        raise BadRecord("too_deep", message)
    if np.count_nonzero((shape == ord(":")) & (depths == 1)) > MAX_COLUMNS:
        raise BadRecord("too_many_fields", f"the line has more than {MAX_COLUMNS} fields")


def _take_id(values: dict[str, msgspec.Raw], id_column: str) -> tuple[str | None, msgspec.Raw | None]:
    """The id as text (None if absent, null or empty), and its raw value if it is a number."""
    value = values.pop(id_column, _ABSENT)
    if (text := read_string(value)) is not None:
        return check_id(text, id_column) or None, None
    raw = bytes(value)
    if raw == b"null":
        return None, None
    if raw[:1] not in b"-0123456789":
        raise BadRecord("invalid_id", f"{id_column} must be a string or a number")
    return check_id(raw.decode(), id_column), value


def _take_text(values: dict[str, msgspec.Raw], text_column: str, given: str | None) -> str:
    value = values.pop(text_column, None)
    if value is None or bytes(memoryview(value)[:1]) == b"n":
        raise BadRecord("missing_text", f"the line has no {text_column}", id=given)
    text = read_string(value)
    if text is None:
        raise BadRecord("invalid_text", f"{text_column} must be a string", id=given)
    return check_text(text, text_column, id=given)
