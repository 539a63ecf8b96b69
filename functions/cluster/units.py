"""Units of a bulk job over files: what a part is, how it is read, and what says that it is done.

A unit is a range of rows of one input file. It is written in parts: a Parquet file for the vectors of
each, another one for its bad rows. Its marker, written last, is the commit point: a unit with a marker
is never computed again. Does not know Ray or models.

    OUT/NAME/part-00000-00000.parquet        rows with vectors; the numbers are the unit's and the part's
    OUT/_bad/NAME/part-00000-00000.parquet   rows without, and why; only if there are any
    OUT/_done/NAME/00000.json                rows, bad rows, and the version of the input file
    OUT/_job.json                            how to embed, the revision included: later runs go by it

Readers of folders (Arrow, Ray, Spark) pass over names that begin with an underscore.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from functions.cluster.rows import HowToEmbed
from shared.errors import InvalidInput

UNIT_ROWS = 20_000
"""Of a Parquet file's units at most, in whole row groups; and of a part, in which a unit is read."""

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv")


@dataclass(frozen=True, slots=True)
class Unit:
    """file: its path. name: its folder below the output. number: of the unit in its file.

    groups: of a Parquet file, first and end; None: a whole file.
    version: of the file, by size and time.
    """

    file: str
    name: str
    number: int
    groups: tuple[int, int] | None
    version: str


class Done(msgspec.Struct, frozen=True):
    """A marker."""

    rows: int
    bad: int
    version: str


def find_units(source: Path) -> list[Unit]:
    """The units of a file, or of all files in a folder that have a suffix of SUFFIXES.

    Names that begin with "_" or "." are passed over, as readers of folders do. Raises InvalidInput if
    there are none.
    """
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    base = source.parent if source.is_file() else source
    files = [path for path in files if path.suffix in SUFFIXES and not _is_hidden(path, base)]
    if not files:
        raise InvalidInput(f"{source} has no {', '.join(SUFFIXES)} file", field="IN")
    units = []
    for path in files:
        stat = path.stat()
        version = f"{stat.st_size}-{stat.st_mtime_ns}"
        name = str(path.relative_to(base))
        for number, groups in enumerate(_groups_of(path)):
            units.append(Unit(str(path), name, number, groups, version))
    return units


def _is_hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(("_", ".")) for part in path.relative_to(base).parts)


def _groups_of(path: Path) -> Iterator[tuple[int, int] | None]:
    if path.suffix != ".parquet":
        yield None
        return
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        raise InvalidInput(f"{path.name} is not a Parquet file", field="IN") from None
    first, rows = 0, 0
    for group in range(metadata.num_row_groups):
        more = metadata.row_group(group).num_rows
        if rows and rows + more > UNIT_ROWS:
            yield first, group
            first, rows = group, 0
        rows += more
    yield first, metadata.num_row_groups


def read_unit(unit: Unit, text_column: str) -> Iterator[pa.Table]:
    """Its rows in order, in tables of at most UNIT_ROWS rows. Raises InvalidInput.

    A line of JSONL that is no object is a row of its own with a null in every column. Of CSV, where all
    is text, the text column is read as such, and other columns as what they look like.
    """
    path = Path(unit.file)
    try:
        if unit.groups is not None:
            with pq.ParquetFile(path) as file:
                yield from _in_parts(file.iter_batches(UNIT_ROWS, row_groups=[*range(*unit.groups)]))
        elif path.suffix == ".csv":
            as_text = pyarrow.csv.ConvertOptions(column_types={text_column: pa.string()})
            with pyarrow.csv.open_csv(path, convert_options=as_text) as batches:
                yield from _in_parts(batches)
        else:
            yield from _read_lines(path, text_column)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        raise InvalidInput(f"{path.name} cannot be read as {path.suffix[1:]}", field="IN") from None


def _in_parts(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if waiting and rows + batch.num_rows > UNIT_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting, rows = [], 0
        waiting.append(batch)
        rows += batch.num_rows
    if waiting:
        yield pa.Table.from_batches(waiting)


def _read_lines(path: Path, text_column: str) -> Iterator[pa.Table]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                rows.append(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError):
                rows.append({})
            if len(rows) == UNIT_ROWS:
                yield _table_of(rows, text_column)
                rows = []
    if rows:
        yield _table_of(rows, text_column)


def _table_of(rows: list[dict[str, Any]], text_column: str) -> pa.Table:
    """A column for each name in any row. Values of several types become their JSON, but in the text
    column nulls: a number is no text, as in bulk jobs."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError):
            convert = _text_or_null if name == text_column else _text_or_json
            columns[name] = pa.array([convert(value) for value in values], pa.string())
    return pa.table(columns)


def _text_or_null(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _text_or_json(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


class OutputFolder:
    """OUT."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, how: HowToEmbed) -> HowToEmbed:
        """Begin the job there, or go on with it: then its revision counts. Raises InvalidInput for
        other options than it was begun with, because two kinds of vectors must not stand together."""
        path = self._folder / "_job.json"
        try:
            begun = msgspec.json.decode(path.read_bytes(), type=HowToEmbed)
        except FileNotFoundError:
            _write(path, msgspec.json.encode(how))
            return how
        except msgspec.DecodeError:
            raise InvalidInput(f"{path} is not this program's", field="OUT") from None
        for name in ("model", "text_column", "dimensions", "prompt_name", "truncate"):
            if getattr(begun, name) != getattr(how, name):
                raise InvalidInput(
                    f"OUT was begun with {name} {getattr(begun, name)!r}: take it, or another folder",
                    field=name,
                )
        return begun

    def done(self, unit: Unit) -> Done | None:
        """What its marker says; None if it is not done, or its file has changed since."""
        try:
            done = msgspec.json.decode(self._marker(unit).read_bytes(), type=Done)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return done if done.version == unit.version else None

    def write(self, unit: Unit, tables: Iterator[pa.Table]) -> Done:
        """Write the unit's rows, those with an error apart, and then its marker."""
        rows = bad = part = 0
        for part, table in enumerate(tables, start=1):
            failed = table.filter(table["error"].is_valid())
            name = _part_name(unit.number, part - 1)
            good = table.filter(table["error"].is_null()).drop_columns(["error"])
            self._write_table(self._folder / unit.name / name, good)
            self._write_table(self._folder / "_bad" / unit.name / name, failed)
            rows, bad = rows + good.num_rows, bad + failed.num_rows
        for path in self._parts_of(unit.name):
            if _part_name(unit.number, part) <= path.name < _part_name(unit.number + 1, 0):
                path.unlink()
        done = Done(rows, bad, unit.version)
        _write(self._marker(unit), msgspec.json.encode(done))
        return done

    def keep_only(self, units: Sequence[Unit]) -> None:
        """Of files that had more units in an earlier version, remove what those have written."""
        for name, count in Counter(unit.name for unit in units).items():
            stale = [path for path in self._parts_of(name) if path.name >= _part_name(count, 0)]
            markers = (self._folder / "_done" / name).glob("*.json")
            stale += [path for path in markers if path.name >= _marker_name(count)]
            for path in stale:
                path.unlink()

    def _parts_of(self, name: str) -> list[Path]:
        folders = self._folder / name, self._folder / "_bad" / name
        return [path for folder in folders for path in folder.glob("part-*.parquet")]

    def _marker(self, unit: Unit) -> Path:
        return self._folder / "_done" / unit.name / _marker_name(unit.number)

    def _write_table(self, path: Path, table: pa.Table) -> None:
        """Nothing where there are no rows: what an earlier try has written goes."""
        if not table.num_rows:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        making = _making(path)
        pq.write_table(table, making, compression="zstd")
        making.replace(path)


def _part_name(unit: int, part: int) -> str:
    return f"part-{unit:05}-{part:05}.parquet"


def _marker_name(unit: int) -> str:
    return f"{unit:05}.json"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    making = _making(path)
    making.write_bytes(data)
    making.replace(path)


def _making(path: Path) -> Path:
    """Two processes may make the same unit, after a node seemed gone: each has a name of its own."""
    return path.with_name(f".{path.name}.{os.getpid()}")
