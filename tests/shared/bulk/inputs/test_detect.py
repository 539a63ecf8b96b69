"""shared/bulk/inputs/detect.py and the text formats: every oddity, under every compression."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.bulk.inputs.detect import HEAD_BYTES, InputFormat, ReadOptions, detect_format, read_rows
from shared.bulk.inputs.lines import MAX_RECORD_BYTES, MAX_TEXT_BYTES
from shared.bulk.inputs.source import ByteSource
from shared.bulk.rows import BadRow, Row, cut_chunks
from shared.errors import InvalidInput, Unavailable
from tests.shared.bulk.sources import COMPRESSIONS, memory_source, read_all

BOM = b"\xef\xbb\xbf"


def batch_line(custom_id: object = "a", **changes: object) -> bytes:
    body = {"model": "m", "input": "x", **changes.pop("body", {})}  # type: ignore[dict-item]
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}
    return json.dumps({**line, **changes}).encode() + b"\n"


def good(row: int, line: int, id: str, text: str, fields: object = None) -> Row:
    return Row(row, line, id, text, fields)  # type: ignore[arg-type]


def bad(line: int, code: str, id: str | None = None) -> tuple[int, str | None, str]:
    return line, id, code


CASES: dict[str, tuple[str, bytes, ReadOptions, list[object]]] = {
    "jsonl": (
        "a.jsonl",
        b'{"id":"a","text":"one"}\n{"text":"two","n":[1, 2]}\n',
        ReadOptions(),
        [good(0, 1, "a", "one", "{}"), good(1, 2, "1", "two", '{"n":[1, 2]}')],
    ),
    "jsonl with BOM, CRLF, blank lines and no last newline": (
        "a.ndjson",
        BOM + b'\r\n{"text":"one"}\r\n \r\n\r\n{"text":"two"}',
        ReadOptions(),
        [good(0, 2, "0", "one", "{}"), good(1, 5, "1", "two", "{}")],
    ),
    "jsonl numbers keep their digits": (
        "a.jsonl",
        b'{"id":12345678901234567890123,"text":"x","n":1e999,"m":0.1000}\n{"id":-0.50,"text":"y"}',
        ReadOptions(),
        [
            good(
                0,
                1,
                "12345678901234567890123",
                "x",
                '{"id":12345678901234567890123,"n":1e999,"m":0.1000}',
            ),
            good(1, 2, "-0.50", "y", '{"id":-0.50}'),
        ],
    ),
    "jsonl names that are ours": (
        "a.jsonl",
        b'{"body":"x","key":"k","text":1,"id":2,"embedding":3,"input_text":4}\n',
        ReadOptions(text_column="body", id_column="key"),
        [good(0, 1, "k", "x", '{"input_text":1,"input_id":2,"input_embedding":3,"input_text_2":4}')],
    ),
    "jsonl bad lines": (
        "a.jsonl",
        b'{"id":"a","text":""}\n{"id":"b"}\n{"id":"c","text":null}\n{"id":"d","text":3}\n'
        b'nonsense\n[1]\n{"text":"\xff"}\n{"text":"x","id":[1]}\n{"text":"x","id":true}\n'
        b'{"text":"\\ud800"}\n{"text":"x"} {}\n' + b'{"text":"x","n":' + b"[" * 5000 + b"\n"
        b'{"id":"","text":"ok"}\n',
        ReadOptions(kind="jsonl"),
        [
            bad(1, "empty_text", "a"),
            bad(2, "missing_text", "b"),
            bad(3, "missing_text", "c"),
            bad(4, "invalid_text", "d"),
            bad(5, "invalid_json_line"),
            bad(6, "invalid_json_line"),
            bad(7, "invalid_utf8"),
            bad(8, "invalid_id"),
            bad(9, "invalid_id"),
            bad(10, "invalid_json_line"),
            bad(11, "invalid_json_line"),
            bad(12, "too_deep"),
            good(12, 13, "12", "ok", "{}"),
        ],
    ),
    "csv": (
        "a.csv",
        b'id,text,n,,n\n1,"a, ""b""\r\nc",x,y,z\r\n\r\n,d,,,\n',
        ReadOptions(),
        [
            good(0, 2, "1", 'a, "b"\r\nc', {"n": "x", "column_4": "y", "n_2": "z"}),
            good(1, 5, "1", "d", {"n": "", "column_4": "", "n_2": ""}),
        ],
    ),
    "csv with BOM, blank lines first and no last newline": (
        "a.csv",
        BOM + b'\n\ntext\n"one\n\ntwo"\n \n""\nlast',
        ReadOptions(),
        [
            good(0, 4, "0", "one\n\ntwo", {}),
            good(1, 7, "1", " ", {}),
            bad(8, "empty_text"),
            good(3, 9, "3", "last", {}),
        ],
    ),
    "csv columns by options, names that are ours": (
        "a.csv",
        b"text,row,body,key,vector\n1,2,3,4,5\n",
        ReadOptions(text_column="body", id_column="key"),
        [good(0, 2, "4", "3", {"input_text": "1", "input_row": "2", "input_vector": "5"})],
    ),
    "csv bad records": (
        "a.csv",
        b'text,id\na\nb,1,2\n\xff,3\nc\rd,4\n,5\nx"y,6\n"p"q"r,7\n"a\nb",c,8\n',
        ReadOptions(),
        [
            bad(2, "wrong_number_of_cells"),
            bad(3, "wrong_number_of_cells"),
            bad(4, "invalid_utf8"),
            bad(5, "invalid_csv"),
            bad(6, "empty_text", "5"),
            good(5, 7, "6", 'x"y', {}),
            good(6, 8, "7", 'pq"r', {}),
            bad(9, "wrong_number_of_cells"),
        ],
    ),
    "tsv": (
        "A.TSV",
        b'id\ttext\n1\t"a\tb\nc"\n2\td, e\n\t\n',
        ReadOptions(),
        [good(0, 2, "1", "a\tb\nc", {}), good(1, 4, "2", "d, e", {}), bad(5, "empty_text")],
    ),
    "text": (
        "a.txt",
        BOM + b"one\r\n\n  \n two \nth\xffree\nf\xc3\xbcr",
        ReadOptions(),
        [
            good(0, 1, "0", "one"),
            good(1, 4, "1", " two "),
            bad(5, "invalid_utf8"),
            good(3, 6, "3", "für"),
        ],
    ),
    "batch": (
        "a.jsonl",
        batch_line(body={"dimensions": 5, "encoding_format": "base64"})
        + b"\r\n"
        + batch_line("b", body={"input": ["y", "z"]}),
        ReadOptions(),
        [
            Row(0, 1, "a", "x", '{"model":"m","dimensions":5,"encoding_format":"base64"}', 0, 1),
            Row(1, 3, "b", "y", '{"model":"m"}', 0, 2),
            Row(1, 3, "b", "z", '{"model":"m"}', 1, 2),
        ],
    ),
    "batch bad lines": (
        "a.jsonl",
        batch_line()
        + batch_line()
        + batch_line("c", method="GET")
        + batch_line("d", url="/v1/chat/completions")
        + batch_line("e", body={"model": "other"})
        + batch_line("f", body={"input": [1, 2]})
        + batch_line("g", body={"input": ["x", ""]})
        + batch_line("h", body={"input": ["x", "y", "z"]})
        + batch_line("i", body={"dimensions": 9})
        + batch_line("j", body={"dimensions": 0})
        + batch_line("k", body={"input": {"text": "x"}})
        + batch_line(None)
        + batch_line(7)
        + b'{"custom_id":"l","method":"POST","url":"/v1/embeddings"}\n'
        + b"nonsense\n"
        + batch_line("m"),
        ReadOptions(max_inputs=2, max_dimensions=8),
        [
            Row(0, 1, "a", "x", '{"model":"m"}', 0, 1),
            bad(2, "duplicate_custom_id", "a"),
            bad(3, "invalid_method", "c"),
            bad(4, "url_mismatch", "d"),
            bad(5, "model_mismatch", "e"),
            bad(6, "invalid_input", "f"),
            bad(7, "empty_input", "g"),
            bad(8, "invalid_input", "h"),
            bad(9, "invalid_input", "i"),
            bad(10, "invalid_input", "j"),
            bad(11, "invalid_input", "k"),
            bad(12, "missing_required_parameter"),
            bad(13, "missing_required_parameter"),
            bad(14, "invalid_input", "l"),
            bad(15, "invalid_json_line"),
            Row(15, 16, "m", "x", '{"model":"m"}', 0, 1),
        ],
    ),
    "batch for another model than the job's": (
        "a.jsonl",
        batch_line() + batch_line("b", body={"model": None}),
        ReadOptions(model="n"),
        [bad(1, "model_mismatch", "a"), Row(1, 2, "b", "x", '{"model":null}', 0, 1)],
    ),
    "batch by other names": (
        "a.jsonl",
        batch_line() + batch_line("b", body={"model": "a/m"}) + batch_line("c", body={"model": "a"}),
        ReadOptions(model="m", aliases={"a/m": "m"}),
        [
            Row(0, 1, "a", "x", '{"model":"m"}', 0, 1),
            Row(1, 2, "b", "x", '{"model":"a/m"}', 0, 1),
            bad(3, "model_mismatch", "c"),
        ],
    ),
    "nothing": ("a.csv", b"", ReadOptions(), []),
    "blank lines alone": ("a.jsonl", BOM + b"\n\r\n", ReadOptions(), []),
}


def shown(rows: list[Row | BadRow]) -> list[object]:
    return [(row.line, row.id, row.code) if isinstance(row, BadRow) else row for row in rows]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_format_reads_the_same_under_every_compression(case: str, compression: str) -> None:
    """Bad rows have line, reason and id; all others come, numbered as if the bad ones had, too."""
    name, data, options, expected = CASES[case]
    assert shown(read_all(name, COMPRESSIONS[compression](data), options)) == expected


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at_most", [1, 7])
def test_short_reads_change_nothing(case: str, compression: str, at_most: int) -> None:
    """A storage may give less than it is asked for."""
    name, plain, options, expected = CASES[case]
    data = COMPRESSIONS[compression](plain)
    format = detect_format(name, data[:HEAD_BYTES], options)
    rows = read_rows(memory_source(data, at_most=at_most), format, options)
    assert shown(list(rows)) == expected


LINES = {"text": b"text %d", "jsonl": b'{"text":"text %d"}', "csv": b"text %d"}


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("kind", LINES)
def test_a_broken_end_ends_the_job_and_no_half_text_comes_before_it(
    kind: Literal["text", "jsonl", "csv"], compression: Literal["gzip", "zstd"]
) -> None:
    """What comes of a stream that ends too early is a beginning of the rows in it, then the line."""
    lines = [LINES[kind] % (number**9 % 10**9) + b"\n" for number in range(20_000)]
    data = b"".join([b"text\n", *lines] if kind == "csv" else lines)
    whole = list(read_rows(memory_source(data), InputFormat(kind), ReadOptions()))
    packed = COMPRESSIONS[compression](data)
    found: list[int] = []
    for end in (len(packed) * 3 // 4, len(packed) - 5, len(packed) - 1):
        before: list[Row | BadRow] = []
        rows = read_rows(memory_source(packed[:end]), InputFormat(kind, compression), ReadOptions())
        with pytest.raises(InvalidInput, match="ends too early or is damaged") as refused:
            before.extend(rows)
        assert before == whole[: len(before)]
        assert f"in line {before[-1].line + 1}:" in refused.value.message
        found.append(len(before))
    assert 0 < found[0] < found[1] <= found[2] <= len(whole)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_damaged_bytes_end_the_file(compression: Literal["gzip", "zstd"]) -> None:
    """What stands behind the damage cannot be trusted."""
    data = b"".join(b"text %d\n" % (number**9 % 10**9) for number in range(20_000))
    packed = bytearray(COMPRESSIONS[compression](data))
    packed[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
    rows = read_rows(memory_source(bytes(packed)), InputFormat("text", compression), ReadOptions())
    with pytest.raises(InvalidInput, match="ends too early or is damaged"):
        list(rows)


def test_a_plain_source_that_ends_before_its_size_is_truncated() -> None:
    """Its last line may be half a text."""
    source = ByteSource(100, lambda start, length: b"one\ntw"[start : start + length])
    with pytest.raises(InvalidInput, match="damaged in line 1"):
        list(read_rows(source, InputFormat("text"), ReadOptions()))


def test_a_source_s_error_passes_through() -> None:
    """A storage that does not answer is no fault of the file."""

    def read(start: int, length: int) -> bytes:
        raise Unavailable("later")

    for kind in ("text", "jsonl", "batch", "csv", "tsv", "parquet"):
        with pytest.raises(Unavailable):
            list(read_rows(ByteSource(100, read), InputFormat(kind), ReadOptions()))


def test_long_texts_and_lines_are_bad_rows_and_the_next_line_is_read() -> None:
    """A text's limit is its bytes, not its characters; lines have one of their own."""
    allowed, over = "a" * MAX_TEXT_BYTES, "ä" * (MAX_TEXT_BYTES // 2) + "a"
    data = f"{allowed}\n{over}\n".encode() + b"x" * (MAX_RECORD_BYTES + 1) + b"\nlast\n"
    rows = read_all("a.txt", data)
    assert shown(rows) == [
        good(0, 1, "0", allowed),
        bad(2, "text_too_long"),
        bad(3, "line_too_long"),
        good(3, 4, "3", "last"),
    ]


def test_a_csv_record_of_many_lines_is_not_longer_than_a_record() -> None:
    """What its quotes hold together may be rows: nobody can tell how many there were."""
    inside = (b"a,b " * 99 + b'\n""c"",d\n') * (MAX_RECORD_BYTES // 400)
    for end in (b'"\n2,x\n', b""):
        with pytest.raises(InvalidInput, match="the quote that opens in line 2 is not closed within"):
            read_all("a.csv", b'id,text\n1,"' + inside + end)


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("m/a.b.jsonl", b"", "jsonl"),
        ("a.JSON", b'{"text":"x"}', "jsonl"),
        ("a.csv", b"{", "csv"),
        ("a.csv.gz", b"", "csv"),
        ("a.tsv.zst", b"", "tsv"),
        ("a.parquet", b"", "parquet"),
        ("a.pq", b"PAR1", "parquet"),
        ("a.txt", b"{", "text"),
        ("a", b"PAR1", "parquet"),
        ("csv", b"a,b", "text"),
        ("a", BOM + b' \n{"text":"x"}', "jsonl"),
        ("a", batch_line(), "batch"),
        ("a.jsonl", BOM + b"nonsense\n" + batch_line(), "batch"),
        ("a.jsonl", b'{"text":"about \\"custom_id\\" and \\"body\\""}\n' + batch_line(), "jsonl"),
        ("a.jsonl", batch_line(body={"input": ["x" * 99] * 999})[:HEAD_BYTES], "batch"),
    ],
)
def test_formats_are_told_by_name_then_by_content(name: str, head: bytes, kind: str) -> None:
    """A batch is told from other JSONL by its first line that can be read, even a cut one."""
    assert detect_format(name, head, ReadOptions()) == InputFormat(kind)  # type: ignore[arg-type]


def test_options_overrule_the_name_and_the_content_overrules_a_name_s_compression() -> None:
    """Some clients unpack what they upload, and some names lie."""
    assert detect_format("a.csv.gz", b"text\nx", ReadOptions(kind="text")) == InputFormat("text")
    packed = COMPRESSIONS["gzip"](batch_line())
    assert detect_format("a", packed, ReadOptions()) == InputFormat("batch", "gzip")
    with pytest.raises(InvalidInput):
        ReadOptions(kind="xlsx")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", "text".encode("utf-16")),
        ("a.csv", b"PK\x03\x04"),
        ("a", b"%PDF-1.7"),
        ("a.json", b' [{"text":"x"}]'),
        ("a.parquet", COMPRESSIONS["gzip"](b"PAR1")),
        ("a.csv", b"body\nx\n"),
        ("a.csv", b"\xff\n"),
        ("a.csv", b'"text\n'),
    ],
)
def test_files_that_cannot_be_read_at_all_are_refused(name: str, data: bytes) -> None:
    """The message says what would be right."""
    with pytest.raises(InvalidInput):
        read_all(name, data)


def test_a_column_of_ids_that_is_asked_for_must_be_there() -> None:
    """Only the usual one may be missing."""
    with pytest.raises(InvalidInput, match="key"):
        read_all("a.csv", b"text\nx\n", ReadOptions(id_column="key"))


def test_neither_rows_nor_bad_rows_show_texts() -> None:
    """They may end up in a log."""
    for name, data in (
        ("a.jsonl", b'{"text":"secret","n":"secret"}\n{"text":["secret"]}\nsecret\n'),
        ("a.csv", b"text,n\nsecret,secret\nsecret\n"),
        ("a.jsonl", batch_line(body={"input": {"a": "secret"}}) + batch_line("b", method="secret")),
    ):
        assert "secret" not in repr(read_all(name, data))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
NAMES = TEXTS.filter(lambda name: name not in ("id", "text", "embedding", "scale"))


@settings(max_examples=50)
@given(st.lists(st.tuples(TEXTS, TEXTS, st.dictionaries(NAMES, VALUES, max_size=3)), max_size=6))
def test_whatever_is_written_as_jsonl_comes_back(
    rows: list[tuple[str, str, dict[str, object]]],
) -> None:
    """Ids, texts and the other fields."""
    data = "".join(json.dumps({"id": id, "text": text, **others}) + "\n" for id, text, others in rows)
    back = [row for row in read_all("a.jsonl", data.encode()) if isinstance(row, Row)]
    assert [(row.id, row.text, json.loads(str(row.fields))) for row in back] == rows


@settings(max_examples=50)
@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=6), st.sampled_from(["\n", "\r\n"]))
@example([('"', '""\n"', ',\r"')], "\n")
def test_whatever_is_written_as_csv_comes_back(rows: list[tuple[str, str, str]], end: str) -> None:
    """Line ends, quotes and commas inside cells, as Python's csv module writes them."""
    file = io.StringIO()
    # With "\n" it leaves a cell's "\r" bare, which nobody can read back.
    quoting: Literal[0, 1] = csv.QUOTE_ALL if end == "\n" else csv.QUOTE_MINIMAL
    writer = csv.writer(file, lineterminator=end, quoting=quoting)
    writer.writerows([("n", "text", "id"), *rows])
    back = [row for row in read_all("a.csv", file.getvalue().encode()) if isinstance(row, Row)]
    assert [(row.fields, row.text, row.id) for row in back] == [
        ({"n": n}, text, id) for n, text, id in rows
    ]


def endless(head: bytes, pattern: bytes, size: int) -> ByteSource:
    """`head`, then `pattern` again and again, made when it is read."""

    def read(start: int, length: int) -> bytes:
        if start < len(head):
            return head[start : start + length]
        skip = (start - len(head)) % len(pattern)
        times = (skip + length) // len(pattern) + 1
        return (pattern * times)[skip : skip + min(length, size - start)]

    return ByteSource(size, read)


@pytest.mark.parametrize(
    ("kind", "head", "pattern", "records"),
    [
        ("jsonl", b"", b'{"text":"%s","n":1}\n' % (b"word " * 4000), True),
        ("csv", b"text\n", b'"%s\n%s"\n' % (b"word " * 2000, b"word " * 2000), True),
        ("text", b"", b"word ", False),
    ],
    ids=["jsonl", "csv", "one line"],
)
def test_two_hundred_megabytes_are_read_in_little_memory(
    kind: Literal["jsonl", "csv", "text"], head: bytes, pattern: bytes, records: bool
) -> None:
    """Even if they are one line, which then is bad."""
    size = len(head) + 200_000_000 // len(pattern) * len(pattern)
    source = endless(head, pattern, size)
    tracemalloc.start()
    try:
        rows = bads = 0
        for chunk in cut_chunks(read_rows(source, InputFormat(kind), ReadOptions())):
            rows += chunk.table.num_rows
            bads += len(chunk.bad)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64_000_000
    assert (rows, bads) == ((size // len(pattern), 0) if records else (0, 1))


def test_a_bomb_unpacks_in_little_memory() -> None:
    """Half a gigabyte of one byte is some kilobytes of zstd."""
    packed = COMPRESSIONS["zstd stream"](bytes(200_000_000))
    tracemalloc.start()
    try:
        rows = list(read_rows(memory_source(packed), InputFormat("text", "zstd"), ReadOptions()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert shown(rows) == [bad(1, "line_too_long")]
    assert peak < 128_000_000
