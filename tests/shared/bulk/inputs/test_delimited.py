"""shared/bulk/inputs/delimited.py: what Excel and its like write, and rows that quotes swallow."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.bulk.inputs.detect import ReadOptions
from shared.bulk.rows import BadRow, Row
from shared.errors import InvalidInput
from tests.server import ROOT
from tests.shared.bulk.sources import read_all

CASES_FOLDER = ROOT.parent / "shared" / "data" / "cases"
RIGHT = [("1", "hello; there"), ("2", "zwei")]


def pairs(rows: list[Row | BadRow]) -> list[tuple[str, str]]:
    return [(row.id, row.text) if isinstance(row, Row) else (row.code, str(row.line)) for row in rows]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.csv", b'id;text\r\n1;"hello; there"\r\n2;zwei\r\n', RIGHT),
        ("a.csv", b"\xef\xbb\xbfid;text\r\n1;hello\r\n", [("1", "hello")]),
        ("a.csv", b"id\ttext\n1\thello, there\n", [("1", "hello, there")]),
        ("a.csv", b"id|text\n1|hello, there\n", [("1", "hello, there")]),
        ("a.tsv", b'id,text\n1,"hello\tthere"\n', [("1", "hello\tthere")]),
        ("a.csv", b"sep=,\r\ntext,id\r\nhello,1\r\n", [("1", "hello")]),
        ("a.csv", b"\xef\xbb\xbfsep=;\r\ntext;id\r\nhel,lo;1\r\n", [("1", "hel,lo")]),
        ("a.csv", b'\n"sep=;"\n\ntext;id\nhello;1\n', [("1", "hello")]),
        ("a.csv", b"SEP=\t\ntext\tid\nhello\t1\n", [("1", "hello")]),
        ("a.csv", b"id, text\r\n1,hello\r\n2, world\r\n", [("1", "hello"), ("2", " world")]),
        ("a.csv", b'"id " ,"text"\n1,hello\n', [("1", "hello")]),
        ("a.csv", b"text\nsep=;\n", [("0", "sep=;")]),
        ("a.csv", b"id,text,a;text\n1,x;y,z\n", [("1", "x;y")]),
        ("a.csv", b"id,text\n1,a\x00b\n", [("1", "a\x00b")]),
        ("a.csv", b'id,text\n1,5" disk\n2,a "b" c\n', [("1", '5" disk'), ("2", 'a "b" c')]),
        (
            "a.csv",
            b"id,text\n1\n2,b,c\n3,d\n,\n4,e",
            [
                ("wrong_number_of_cells", "2"),
                ("wrong_number_of_cells", "3"),
                ("3", "d"),
                ("empty_text", "5"),
                ("4", "e"),
            ],
        ),
    ],
)
def test_what_the_usual_programs_write_is_read(
    name: str, data: bytes, expected: list[tuple[str, str]]
) -> None:
    """Other delimiters, Excel's first line, spaces in the header, quotes and zeros within cells."""
    assert pairs(read_all(name, data)) == expected


OPEN = b"".join(b"%d,row number %d\n" % (n, n) for n in range(1, 1000))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (OPEN.replace(b"10,", b'10,"', 1), "the quote that opens in line 11 is never closed"),
        (
            OPEN.replace(b"10,", b'10,"', 1).replace(b"50,", b'50,"', 1),
            "a quote that opens in line 11 closes within a cell by line 51",
        ),
        (b'"id,text\n1,x\n', "the quote that opens in line 1 is never closed"),
        (b'1,x\n2,"\n', "the quote that opens in line 3 is never closed"),
    ],
)
def test_rows_that_a_quote_swallows_end_the_job(data: bytes, reason: str) -> None:
    """With the line: an output without them would pass for a whole one."""
    with pytest.raises(InvalidInput) as refused:
        read_all("a.csv", data if data.startswith(b'"') else b"id,text\n" + data)
    assert reason in refused.value.message


@pytest.mark.parametrize(
    ("data", "options", "reason", "field"),
    [
        (
            b"id,Text,a\x1b[31m\xc3\xbc\n",
            ReadOptions(),
            'no column text, it has "id", "Text", "a\\u001b[31mü"',
            "text_column",
        ),
        (b"text,b\n", ReadOptions(id_column="key"), 'no column key, it has "text", "b"', "id_column"),
        (b"text,a,text\n", ReadOptions(), "2 columns text", "text_column"),
        (b"text,id,id\n", ReadOptions(), "2 columns id", "id_column"),
        (b",".join(b"c%d" % n for n in range(40)), ReadOptions(), '"c29" and 10 more', "text_column"),
        (b"n" * 900 + b"\n", ReadOptions(), '"' + "n" * 50 + '": say', "text_column"),
    ],
)
def test_a_header_that_does_not_do_tells_what_there_is(
    data: bytes, options: ReadOptions, reason: str, field: str
) -> None:
    """The columns found, as far as they can be shown; two of one name cannot be told apart."""
    with pytest.raises(InvalidInput) as refused:
        read_all("a.csv", data, options)
    assert reason in refused.value.message
    assert refused.value.field == field


def accounted(name: str, data: bytes) -> tuple[list[Row | BadRow], str | None]:
    """Rows of both kinds; or why the file is refused."""
    try:
        return read_all(name, data), None
    except InvalidInput as error:
        return [], error.message


@settings(max_examples=400, deadline=None)
@given(st.text(st.sampled_from('a ,"\n;\t\x00é'), max_size=60), st.sampled_from([",", ";", "\t"]))
def test_every_row_of_csv_is_a_row_a_bad_one_or_the_file_is_refused(text: str, delimiter: str) -> None:
    """Python's csv module is the other reader: as many rows, the same cells, in the same order."""
    header = delimiter.join(("id", "text"))
    whole = f"{header}\n{text}"
    found, refused = accounted("a.csv", whole.encode())
    there = [row for row in csv.reader(io.StringIO(whole, newline=""), delimiter=delimiter) if row][1:]
    if refused is not None:
        strict = csv.reader(io.StringIO(whole, newline=""), delimiter=delimiter, strict=True)
        if "zero bytes" not in refused:
            with pytest.raises(csv.Error):
                list(strict)
        return
    assert len(found) == len(there)
    for number, (row, cells) in enumerate(zip(found, there, strict=True)):
        if isinstance(row, Row):
            assert [row.row, row.id, row.text] == [number, cells[0] or str(number), cells[1]]
        else:
            assert len(cells) != 2 or not cells[1]


@pytest.mark.skipif(not CASES_FOLDER.is_dir(), reason="only beside a checkout of the project's own")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("semi.csv", RIGHT),
        ("sepline.csv", [("1", "hello")]),
        ("spacehdr.csv", [("1", "hello"), ("2", " world")]),
        ("lonequote_open.csv", "the quote that opens in line 11 is never closed"),
        ("binary.parquet", "the column text is of the type binary, not of texts"),
        ("nulltype.parquet", "the column text is of the type null, not of texts"),
        ("azure_url.jsonl", [("a", "x")]),
    ],
)
def test_files_that_went_wrong_are_right_or_refused(
    name: str, expected: str | list[tuple[str, str]]
) -> None:
    """Found with the service as it was."""
    rows, refused = accounted(name, (CASES_FOLDER / name).read_bytes())
    assert (expected in (refused or "")) if isinstance(expected, str) else (pairs(rows) == expected)
