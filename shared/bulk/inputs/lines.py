"""Splits bytes into records: one per line, or several lines within CSV quotes.

Records over MAX_RECORD_BYTES are never held in memory. It does not know a record's content.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import msgspec

from shared.bulk.rows import BadRow, Row
from shared.compression import Truncated
from shared.errors import InvalidInput

MAX_TEXT_BYTES = 1_000_000
MAX_RECORD_BYTES = 8_000_000
"""A text of MAX_TEXT_BYTES with each byte escaped as \\u00XX, plus 2 MB for the other fields."""
MAX_ID_BYTES = 1_000
MAX_COLUMNS = 1_024
"""Columns of a table, or fields of a JSON line. A chunk has a buffer per column, even with few rows."""
MAX_NAME_BYTES = 1_000
"""Bytes of a column's name. Every chunk stores all names."""

_PIECE_BYTES = 256 << 10
BOM = b"\xef\xbb\xbf"


class RawRecord(msgspec.Struct, frozen=True):
    """line: 1-based number of its first line. data: its bytes, with the newline if it has one."""

    line: int
    data: bytes


class BadRecord(Exception):
    """Raised by parsers for a record that becomes a BadRow."""

    def __init__(self, code: str, message: str, *, id: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.id = code, message, id


class Quotes:
    """Tracks whether a line end is inside CSV quotes, by the same rules as Python's csv module.

    A quote opens a field only as its first byte; elsewhere in an unquoted field it is an ordinary byte.
    """

    def __init__(self, delimiter: str) -> None:
        self._end_of_field = re.compile(b"[%b\n]" % re.escape(delimiter.encode()))
        self._ends = (ord(delimiter), ord("\n"))
        self._state = "start"  # of a field; or bare, quoted, or quote: after a quote in a quoted field

    def open_after(self, piece: bytes) -> bool:
        """Read `piece`, which has a newline at most at its end. Whether its end is inside quotes."""
        if b'"' not in piece:
            if self._state != "quoted":
                self._state = "start" if piece[-1] in self._ends else "bare"
            return self._state == "quoted"
        position = 0
        while position < len(piece):
            byte = piece[position]
            match self._state:
                case "start":
                    self._state = "quoted" if byte == ord('"') else "bare"
                    position += self._state == "quoted"
                case "bare":
                    found = self._end_of_field.search(piece, position)
                    self._state = "start" if found else "bare"
                    position = found.end() if found else len(piece)
                case "quoted":
                    at = piece.find(b'"', position)
                    self._state = "quoted" if at < 0 else "quote"
                    position = len(piece) if at < 0 else at + 1
                case _:
                    ended = "start" if byte in self._ends else "bare"
                    self._state = "quoted" if byte == ord('"') else ended
                    position += 1
        return self._state == "quoted"


def read_records(blocks: Iterable[bytes], quotes: Quotes | None = None) -> Iterator[RawRecord | BadRow]:
    """Records, and BadRows for lines over MAX_RECORD_BYTES.

    Raises InvalidInput, naming the line, if the rows from there on cannot be counted: for a damaged end,
    and for a quote that is not closed within MAX_RECORD_BYTES, which may join any number of rows.
    """
    line = start = 1
    size, inside, held = 0, False, list[bytes]()
    try:
        for piece in _pieces(blocks):
            size += len(piece)
            held.append(piece)
            if size > MAX_RECORD_BYTES:
                held.clear()
            inside = quotes is not None and quotes.open_after(piece)
            if not piece.endswith(b"\n"):
                continue
            line += 1
            if size > MAX_RECORD_BYTES and quotes is not None and (inside or line - start > 1):
                raise InvalidInput(
                    f"the quote that opens in line {start} is not closed within {MAX_RECORD_BYTES} "
                    "bytes: close it, or double it if it belongs to the text"
                )
            if not inside:
                yield _record(start, size, held)
                start, size = line, 0
                held.clear()
    except Truncated:
        raise InvalidInput(
            f"the file ends too early or is damaged in line {start}: send it again, whole"
        ) from None
    if inside:
        raise InvalidInput(
            f"the quote that opens in line {start} is never closed: close it, or double it if it "
            "belongs to the text"
        )
    if size:
        yield _record(start, size, held)


def parse_records(
    records: Iterable[RawRecord | BadRow],
    parse: Callable[[int, RawRecord], Iterable[Row]],
    blank: bytes = b" \t\r\n",
) -> Iterator[Row | BadRow]:
    """Rows of `parse`(row number from 0, record); a BadRow where it raises BadRecord.

    Records that contain only `blank` bytes are skipped and get no number.
    """
    row = 0
    for record in records:
        if isinstance(record, BadRow):
            yield record
        elif not record.data.strip(blank):
            continue
        else:
            try:
                yield from parse(row, record)
            except BadRecord as bad:
                yield BadRow(record.line, bad.id, bad.code, bad.message)
        row += 1


def decode(data: bytes) -> str:
    """The UTF-8 text of `data`. Raises BadRecord if it is not valid."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadRecord("invalid_utf8", "the line is not valid UTF-8") from None


def check_text(text: str, name: str, *, id: str | None) -> str:
    """`text`, if it is not empty and at most MAX_TEXT_BYTES, else BadRecord. name: its field."""
    if not text:
        raise BadRecord("empty_text", f"{name} is empty", id=id)
    if len(text) * 4 > MAX_TEXT_BYTES and len(text.encode()) > MAX_TEXT_BYTES:
        raise BadRecord("text_too_long", f"{name} has more than {MAX_TEXT_BYTES} bytes", id=id)
    return text


def check_id(id: str, name: str) -> str:
    """`id`, if it is at most MAX_ID_BYTES, else BadRecord. name: its field."""
    if len(id) * 4 > MAX_ID_BYTES and len(id.encode()) > MAX_ID_BYTES:
        raise BadRecord("id_too_long", f"{name} has more than {MAX_ID_BYTES} bytes")
    return id


def _record(line: int, size: int, held: list[bytes]) -> RawRecord | BadRow:
    if size > MAX_RECORD_BYTES:
        message = f"the line has more than {MAX_RECORD_BYTES} bytes"
        return BadRow(line, None, "line_too_long", message)
    data = held[0] if len(held) == 1 else b"".join(held)
    return RawRecord(line, data.removeprefix(BOM) if line == 1 else data)


def _pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines with their newline; a line over _PIECE_BYTES in several pieces, the newline in the last."""
    tail = b""
    for block in blocks:
        lines = (tail + block).split(b"\n")
        tail = lines.pop()
        for line in lines:
            yield line + b"\n"
        if len(tail) > _PIECE_BYTES:
            yield tail
            tail = b""
    if tail:
        yield tail
