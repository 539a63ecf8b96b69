"""Detects the format of an input file and reads its rows in bounded memory.

It does not know storage, jobs or models. Each format's own rules are in a module beside this one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import msgspec

from shared.bulk.inputs.allowance import NO_LIMITS, Allowance
from shared.bulk.inputs.batch import looks_like_batch, read_batch
from shared.bulk.inputs.delimited import read_delimited
from shared.bulk.inputs.foreign import refuse_binary, refuse_foreign, refuse_markup, refuse_name
from shared.bulk.inputs.jsonl import looks_like_object, read_jsonl, read_text
from shared.bulk.inputs.lines import read_records
from shared.bulk.inputs.parquet import read_parquet
from shared.bulk.inputs.source import ByteSource, read_blocks
from shared.bulk.rows import BadRow, Row
from shared.compression import Compression, Truncated, compression_of, unpack
from shared.errors import InvalidInput

Kind = Literal["jsonl", "batch", "csv", "tsv", "parquet", "text"]
"""batch: OpenAI Batch. text: one text per line."""

HEAD_BYTES = 64 << 10
"""How much of a file detect_format needs."""

_KINDS: dict[str, Kind] = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "csv": "csv",
    "tsv": "tsv",
    "parquet": "parquet",
    "pq": "parquet",
    "txt": "text",
}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_PARQUET = b"PAR1"
_BOM = b"\xef\xbb\xbf"


class ReadOptions(msgspec.Struct, frozen=True):
    """How a file is read.

    kind: the format, whatever name and content say; None: detect it.
    text_column, id_column: names of columns or JSON fields; None for id_column: "id" if there is one.
    model: the model of all OpenAI Batch lines; None: the first model that a line names.
    aliases: alias -> model.
    max_dimensions: limit of a Batch line's dimensions; None: none.
    max_inputs: limit of the texts of a Batch line.

    Raises InvalidInput for an unknown kind.
    """

    kind: Kind | None = None
    text_column: str = "text"
    id_column: str | None = None
    model: str | None = None
    aliases: Mapping[str, str] = msgspec.field(default_factory=dict)
    max_dimensions: int | None = None
    max_inputs: int = 2048

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in get_args(Kind):
            raise InvalidInput(f"kind must be one of: {', '.join(get_args(Kind))}", field="kind")


class InputFormat(msgspec.Struct, frozen=True):
    """compression: detected from the content, not from the name."""

    kind: Kind
    compression: Compression | None = None


def detect_format(name: str, head: bytes, options: ReadOptions) -> InputFormat:
    """The format by the options, else by the name's extension (before .gz, .zst), else by the content.

    head: the file's first HEAD_BYTES. Raises InvalidInput, saying what the file is, if it is certainly
    none of the formats or not the one that its name says.
    """
    compression = compression_of(head)
    plain = _plain_head(head, compression)
    refuse_foreign(plain)
    if options.kind is None:
        refuse_name(name)
    kind = options.kind or _kind_by_name(name) or _kind_by_content(plain)
    if kind == "parquet":
        _check_parquet(plain, compression)
        return InputFormat(kind)
    if plain.startswith(_PARQUET):
        raise InvalidInput("the file is Parquet: let its name end in .parquet")
    refuse_binary(plain)
    if options.kind is None:
        refuse_markup(plain.removeprefix(_BOM))
    if kind == "jsonl":
        first = plain.removeprefix(_BOM).lstrip()
        if options.kind is None and _is_batch(first):
            kind = "batch"
        else:
            _check_jsonl(first, whole=len(head) < HEAD_BYTES and len(plain) < HEAD_BYTES)
    return InputFormat(kind, compression)


def _check_parquet(plain: bytes, compression: Compression | None) -> None:
    """Raises InvalidInput."""
    if compression is not None:
        raise InvalidInput("a Parquet file must not be compressed as a whole: its columns are")
    if plain and not plain.startswith(_PARQUET):
        raise InvalidInput("the file is not Parquet, it does not begin with PAR1: rename it")


def _check_jsonl(plain: bytes, *, whole: bool) -> None:
    """Raises InvalidInput if none of the first lines is an object: then no later one is expected to be.

    whole: whether `plain` is the whole file.
    """
    if plain.startswith(b"["):
        raise InvalidInput("the file is a JSON array: write one object on each line")
    lines = [line for line in plain.split(b"\n") if line.strip()]
    # One line that begins an object was cut by HEAD_BYTES or by the sender: reading shows which.
    if not lines or any(map(looks_like_object, lines)) or (len(lines) == 1 and plain.startswith(b"{")):
        return
    if len(lines) == 1 and not whole:
        return  # a line longer than the head is a bad row, and good ones may follow
    if plain.startswith(b"{"):
        raise InvalidInput(
            "the file is not JSON lines, no line at its beginning is an object: write one object on "
            "each line, not over several"
        )
    raise InvalidInput(
        "the file is not JSON lines, no line at its beginning is an object: let its name say what it is "
        "(.csv, .tsv, .txt), or write one object on each line"
    )


def read_rows(
    source: ByteSource, format: InputFormat, options: ReadOptions, allowance: Allowance | None = None
) -> Iterator[Row | BadRow]:
    """Rows and bad rows in the order of the file. Blank lines are skipped, but count as lines.

    allowance: the file's limits; None: none.

    Raises InvalidInput if the file as a whole cannot be read, or, naming the line, if the rows from
    there on cannot be counted (a damaged end, an open quote); and what `source.read` raises.
    """
    allowance = allowance or Allowance(sys.maxsize, NO_LIMITS)
    if format.kind == "parquet":
        return read_parquet(source, options.text_column, options.id_column, allowance)
    unpacked = unpack(
        read_blocks(source),
        format.compression,
        lambda size: allowance.check_bytes(size, "unpacked"),
    )
    blocks = allowance.count_blocks(unpacked)
    if format.kind in _DELIMITERS:
        return read_delimited(blocks, _DELIMITERS[format.kind], options.text_column, options.id_column)
    records = read_records(blocks)
    if format.kind == "text":
        return read_text(records)
    if format.kind == "batch":
        return read_batch(
            records,
            model=options.model,
            aliases=options.aliases,
            max_inputs=options.max_inputs,
            max_dimensions=options.max_dimensions,
        )
    return read_jsonl(records, options.text_column, options.id_column or "id")


def _plain_head(head: bytes, compression: Compression | None) -> bytes:
    plain = b""
    try:
        for piece in unpack((head,), compression):
            plain += piece
            if len(plain) >= HEAD_BYTES:
                break
    except Truncated:  # expected: `head` is only the beginning of the file
        pass
    return plain[:HEAD_BYTES]


def _kind_by_name(name: str) -> Kind | None:
    endings = name.lower().rpartition("/")[2].split(".")
    if endings[-1] in ("gz", "gzip", "zst", "zstd"):
        endings.pop()
    return _KINDS.get(endings[-1]) if len(endings) > 1 else None


def _kind_by_content(plain: bytes) -> Kind:
    if plain.startswith(_PARQUET):
        return "parquet"
    return "jsonl" if plain.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else "text"


def _is_batch(plain: bytes) -> bool:
    """By the first line that is JSON; a line longer than the head, by the names in its beginning."""
    for line in plain.split(b"\n"):
        if (found := looks_like_batch(line)) is not None:
            return found
    return b'"custom_id"' in plain and b'"body"' in plain
