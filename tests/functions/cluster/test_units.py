"""Files of a bulk job: how they are cut, read and written, and what is done again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from functions.cluster.rows import HowToEmbed
from functions.cluster.units import Done, OutputFolder, find_units, read_unit
from shared.errors import InvalidInput

HOW = HowToEmbed("m", "r1", 16)


def _tables(*errors: str | None) -> Iterator[pa.Table]:
    yield pa.table({"id": range(len(errors)), "error": pa.array(errors, pa.string())})


def test_files_are_found_and_hidden_ones_passed_over(tmp_path: Path) -> None:
    """Below folders too, by their suffix, in order."""
    for name in ("b.csv", "a/c.jsonl", "a/_done/x.csv", ".hidden.csv", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text\n")
    assert [unit.name for unit in find_units(tmp_path)] == ["a/c.jsonl", "b.csv"]
    assert [unit.name for unit in find_units(tmp_path / "b.csv")] == ["b.csv"]
    with pytest.raises(InvalidInput, match=r"has no \.parquet"):
        find_units(tmp_path / "notes.txt")


def test_parquet_files_are_cut_at_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as have no more rows than a unit; every row is in one unit, in order."""
    monkeypatch.setattr("functions.cluster.units.UNIT_ROWS", 25)
    table = pa.table({"text": [str(n) for n in range(60)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    units = find_units(tmp_path)
    assert [unit.groups for unit in units] == [(0, 2), (2, 4), (4, 6)]
    read = pa.concat_tables(part for unit in units for part in read_unit(unit, "text"))
    assert read.equals(table)


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", 'text,n\nb,1\n"c\nd",2\n', [{"text": "b", "n": 1}, {"text": "c\nd", "n": 2}]),
        (
            "a.jsonl",
            '{"text":"b"}\n\n{"text":"c","n":[1]}\n',
            [{"text": "b", "n": None}, {"text": "c", "n": [1]}],
        ),
        ("a.ndjson", '{"text":"b"}\nno json\n', [{"text": "b"}, {"text": None}]),
        ("a.jsonl", '{"text":"b"}\n{"text":7}\n', [{"text": "b"}, {"text": None}]),
        (
            "a.jsonl",
            '{"text":"b","n":"c"}\n{"text":"d","n":[7]}\n',
            [{"text": "b", "n": "c"}, {"text": "d", "n": "[7]"}],
        ),
        (
            "a.csv",
            "text,n\n01,01\n2024-01-01,2\n",
            [{"text": "01", "n": 1}, {"text": "2024-01-01", "n": 2}],
        ),
    ],
)
def test_rows_are_read_with_their_columns(
    tmp_path: Path, name: str, content: str, rows: list[dict[str, object]]
) -> None:
    (tmp_path / name).write_text(content)
    (unit,) = find_units(tmp_path)
    assert [row for table in read_unit(unit, "text") for row in table.to_pylist()] == rows


@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
def test_what_is_no_such_file_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\x00" if name.endswith("csv") else b"no")
    with pytest.raises(InvalidInput, match=name):
        _read_all(tmp_path)


def _read_all(folder: Path) -> list[pa.Table]:
    return [table for unit in find_units(folder) for table in read_unit(unit, "text")]


def test_a_unit_is_done_until_its_file_changes(tmp_path: Path) -> None:
    """Its marker comes last; bad rows are beside the others, and what an earlier version left goes."""
    source, output = tmp_path / "a.csv", OutputFolder(tmp_path / "out")
    source.write_text("text\n")
    (unit,) = find_units(source)
    assert output.done(unit) is None

    def broken() -> Iterator[pa.Table]:
        yield from _tables(None)
        raise InvalidInput("it breaks off")

    with pytest.raises(InvalidInput):
        output.write(unit, broken())
    assert output.done(unit) is None
    two_parts = (table for tables in (_tables(None, "no"), _tables("no")) for table in tables)
    assert output.write(unit, two_parts) == output.done(unit) == Done(1, 2, unit.version)
    folder = tmp_path / "out"
    assert pq.read_table(folder / "a.csv").to_pydict() == {"id": [0]}
    assert pq.read_table(folder / "_bad" / "a.csv" / "part-00000-00001.parquet").num_rows == 1
    os.utime(source, ns=(1, 1))
    (changed,) = find_units(source)
    assert output.done(changed) is None
    output.write(changed, _tables(None))
    assert not (folder / "_bad" / "a.csv" / "part-00000-00001.parquet").exists()


def test_a_row_group_larger_than_a_part_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row groups of a million are pyarrow's default; and of more units than now nothing is left."""
    monkeypatch.setattr("functions.cluster.units.UNIT_ROWS", 25)
    source, output = tmp_path / "in", OutputFolder(tmp_path / "out")
    source.mkdir()
    table = pa.table({"text": [str(n) for n in range(80)], "error": pa.nulls(80, pa.string())})
    pq.write_table(table, source / "a.parquet", row_group_size=60)
    units = find_units(source)
    assert [unit.groups for unit in units] == [(0, 1), (1, 2)]
    for unit in units:
        assert output.write(unit, read_unit(unit, "text")) == output.done(unit)
    folder = tmp_path / "out" / "a.parquet"
    assert pq.read_table(folder)["text"].to_pylist() == table["text"].to_pylist()
    pq.write_table(table.slice(0, 30), source / "a.parquet")
    (unit,) = find_units(source)
    output.keep_only([unit])
    output.write(unit, read_unit(unit, "text"))
    assert pq.read_table(folder)["text"].to_pylist() == table["text"].to_pylist()[:30]
    assert len(list((tmp_path / "out" / "_done" / "a.parquet").iterdir())) == 1


def test_a_job_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    """With its revision, whatever is current; with other options it does not."""
    output = OutputFolder(tmp_path / "out")
    assert output.begin(HOW) == HOW
    assert output.begin(HowToEmbed("m", "r2", 16)) == HOW
    assert json.loads((tmp_path / "out/_job.json").read_bytes())["revision"] == "r1"
    for other in (HowToEmbed("n", "r1", 16), HowToEmbed("m", "r1", 8)):
        with pytest.raises(InvalidInput, match="OUT was begun with"):
            output.begin(other)
