"""Inputs made to take memory, disk or time: each is a refusal with its reason, or rows that failed.

Every case is read in a process of its own, whose peak of memory is looked at.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.server import ROOT

PEAK_MIB = 400
CASES_FOLDER = ROOT.parent / "shared" / "data" / "cases"
MB = 1_000_000


@dataclass(frozen=True)
class Repeated:
    """`head`, then `tail` again and again: `size` bytes that are not there."""

    head: bytes
    tail: bytes
    size: int


@dataclass(frozen=True)
class Case:
    """error: what it says, "" for none. codes: of bad rows. written: bytes of chunks, at most."""

    name: str
    make: Callable[[], bytes | Repeated]
    error: str = ""
    rows: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    written: int = 30 * MB


def ran(name: str, data: bytes | Repeated, folder: Path) -> dict[str, Any]:
    path = folder / "input"
    arguments: list[str] = []
    if isinstance(data, Repeated):
        arguments = [str(data.size), str(len(data.tail))]
        data = data.head + data.tail
    path.write_bytes(data)
    command = [sys.executable, "-m", "tests.shared.bulk.bounded", name, str(path), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    print({**found, "input": len(data)})  # shown where a test fails, and by -rP
    return found


def line(**fields: object) -> bytes:
    return json.dumps({"text": "x", **fields}).encode() + b"\n"


def request(custom_id: str = "a", **body: object) -> bytes:
    whole = {"model": "m", "input": "x", **body}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": whole}
    # What is short first, so that the beginning of the line tells that it is a batch.
    line = dict(sorted(line.items(), key=lambda item: len(str(item[1]))))
    return json.dumps(line).encode() + b"\n"


def parquet(columns: dict[str, Any] | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["x"], **(columns or {})}), file, **options)
    return file.getvalue()


def one_value(value: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


def deep_type(levels: int) -> pa.DataType:
    type_: pa.DataType = pa.int32()
    for _ in range(levels):
        type_ = pa.struct([("a", type_)])
    return type_


def with_footer_length(length: int) -> bytes:
    return parquet()[:-8] + struct.pack("<I", length) + b"PAR1"


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def zstd_stream(block: bytes, times: int) -> bytes:
    """One that does not say how long its content is."""
    stream = zstandard.ZstdCompressor().compressobj()
    return b"".join(stream.compress(block) for _ in range(times)) + stream.flush()


def zstd_frame(descriptor: int, *header: int, block: int = 100, repeats: bytes = b"x") -> bytes:
    """One block, of one byte that is repeated."""
    return (
        b"\x28\xb5\x2f\xfd"
        + bytes((descriptor, *header))
        + ((block << 3) | 0b011).to_bytes(3, "little")
        + repeats
    )


def lying_pages(codec: str, said: int) -> bytes:
    """A page of which the header says that it has so many bytes."""
    texts = [random.Random(7).randbytes(1_100_000).hex()]
    data = parquet({"text": texts}, compression=codec, use_dictionary=False, column_encoding="PLAIN")
    page = len(texts[0]) + 4

    def varint(number: int) -> bytes:
        number *= 2  # zigzag of a positive one
        found = bytearray()
        while number > 127:
            found.append(number & 127 | 128)
            number >>= 7
        return bytes((*found, number))

    honest = next(varint(page + more) for more in range(64) if varint(page + more) in data[:200])
    lie = varint(said)
    assert len(lie) == len(honest)
    return data.replace(honest, lie, 1)


GROWN = "more than 20000000 bytes"
MANY = b",".join([b"n"] * 900_000)
WIDE = b"text" + b",n" * 1023 + b"\n"
ROW_OF = {"text": ["x"] * 3}

CASES = {
    # Tables
    "csv of 900,000 equal names": Case("a.csv", lambda: MANY + b"\n", "900000 columns, more than 1024"),
    "csv of 8 MB of commas": Case("a.csv", lambda: b"," * 7_900_000, "7900001 columns, more than 1024"),
    "tsv of 900,000 names": Case(
        "a.tsv",
        lambda: b"\t".join(b"%d" % n for n in range(900_000)) + b"\n",
        "900000 columns, more than 1024",
    ),
    "csv with a long name": Case(
        "a.csv", lambda: b"text," + b"n" * 1001 + b"\nx,y\n", "the name of column 2 has more than 1000"
    ),
    "csv as wide as it may be": Case(
        "a.csv", lambda: WIDE + (b"x" + b",1" * 1023 + b"\n") * 2000, rows=2000
    ),
    "csv rows of commas": Case(
        "a.csv",
        lambda: b"text\n" + (b"," * 7_900_000 + b"\n") * 3,
        codes={"wrong_number_of_cells": 3},
    ),
    "csv with a quote that is never closed": Case(
        "a.csv",
        lambda: Repeated(b'text\n"', b"words words\n", 50 * MB),
        codes={"unterminated_quote": 1},
    ),
    "csv of quotes": Case(
        "a.csv", lambda: Repeated(b"text\n", b'""', 9 * MB + 5), codes={"line_too_long": 1}
    ),
    # Lines
    "jsonl without a line end": Case(
        "a.jsonl", lambda: Repeated(b'{"text":"', b"word ", 600 * MB), codes={"line_too_long": 1}
    ),
    "jsonl of lists in lists": Case(
        "a.jsonl", lambda: b'{"n":' + b"[" * 7_900_000 + b"\n" + line(), rows=1, codes={"too_deep": 1}
    ),
    "jsonl of objects in objects": Case(
        "a.jsonl",
        lambda: b'{"text":"x","n":' + b'{"a":' * 100 + b"1" + b"}" * 101 + b"\n" + line(),
        rows=1,
        codes={"too_deep": 1},
    ),
    "jsonl with a million fields": Case(
        "a.jsonl",
        lambda: line(**{f"{n:x}": 0 for n in range(600_000)}) + line(),
        rows=1,
        codes={"too_many_fields": 1},
    ),
    "jsonl with a long list": Case("a.jsonl", lambda: line(n=[[]] * 1_900_000), rows=1),
    "jsonl with brackets and colons in a text": Case(
        "a.jsonl", lambda: line(text='[{":"' * 2000), rows=1
    ),
    "jsonl with a long id": Case(
        "a.jsonl", lambda: line(id="i" * 7 * MB) + line(id=10**2000), codes={"id_too_long": 2}
    ),
    "jsonl with NUL bytes": Case(
        "a.jsonl", lambda: Repeated(b"", b"\0", 100 * MB), codes={"line_too_long": 1}
    ),
    "text of blank lines": Case("a.txt", lambda: b"\n" * MB),
    "text of a BOM": Case("a.txt", lambda: b"\xef\xbb\xbf"),
    "text in UTF-16": Case("a.txt", lambda: "text\n".encode("utf-16"), "UTF-16: save it as UTF-8"),
    # OpenAI Batch: what a request has, each of its texts would have
    "batch with a large field": Case(
        "a.jsonl", lambda: request(input=["x"] * 2048, user="u" * 7 * MB), rows=1, written=MB
    ),
    "batch with a large prompt's name": Case(
        "a.jsonl",
        lambda: request(input=["x"] * 2048, prompt_name="p" * 7 * MB),
        codes={"invalid_input": 1},
    ),
    "batch with a large id": Case(
        "a.jsonl", lambda: request("c" * 7 * MB, input=["x"] * 2048), codes={"id_too_long": 1}
    ),
    "batch of lists": Case(
        "a.jsonl", lambda: request(input=[[]] * 1_900_000), codes={"invalid_input": 1}
    ),
    # Compression
    "zstd of many lines": Case("a.jsonl", lambda: zstd_stream(line(n="n" * 200) * 10_000, 40), GROWN),
    "zstd that says how much it is": Case(
        "a.jsonl", lambda: zstd(line() * 2 * MB), f"{GROWN} unpacked", written=0
    ),
    "zstd that says less than it is": Case(
        "a.txt", lambda: zstd_frame(0x20, 10, block=100_000), codes={"truncated_input": 1}
    ),
    "zstd with a window of 2 GB": Case(
        "a.txt", lambda: zstd_frame(0, (31 - 10) << 3), "a window of 2147483648 bytes"
    ),
    "zstd of 100,000 frames of nothing": Case("a.txt", lambda: zstd(b"") * 100_000),
    "zstd of skipped frames": Case(
        "a.txt", lambda: b"\x50\x2a\x4d\x18\x04\0\0\0skip" * 100_000 + zstd(b"x\n"), rows=1
    ),
    "zstd that skips more than there is": Case(
        "a.txt", lambda: b"\x50\x2a\x4d\x18\xff\xff\xff\xffskip", codes={"truncated_input": 1}
    ),
    "gzip of a gigabyte of one byte": Case(
        "a.txt", lambda: gzip.compress(bytes(200 * MB), 1), codes={"line_too_long": 1}
    ),
    "gzip of a million members of nothing": Case("a.txt", lambda: gzip.compress(b"") * MB),
    "gzip in gzip": Case(
        "a.txt", lambda: gzip.compress(gzip.compress(b"x\n" * MB, mtime=0)), codes={"invalid_utf8": 1}
    ),
    # Parquet
    "parquet with a value of 100 MB": Case(
        "a.parquet",
        lambda: parquet({"text": ["x" * 100 * MB]}, compression="zstd"),
        f"{GROWN} unpacked",
    ),
    "parquet with a value of 100 MB, of a large file": Case(
        "a.parquet",
        lambda: parquet(
            {"text": ["x" * 100 * MB, random.Random(7).randbytes(100_000).hex()]}, compression="zstd"
        ),
        "cannot be read in the memory that there is",
    ),
    "parquet with a dictionary of one text": Case(
        "a.parquet",
        lambda: parquet({"text": one_value("x" * 900_000, 200_000)}),
        "cut into chunks, which is more than 1000 times its size",
        written=50 * MB,
    ),
    "parquet with a dictionary of one cell": Case(
        "a.parquet",
        lambda: parquet({"text": ["x"] * 200_000, "n": one_value("x" * 900_000, 200_000)}),
        "cut into chunks, which is more than 1000 times its size",
        written=50 * MB,
    ),
    "parquet with a wide cell": Case(
        "a.parquet",
        lambda: parquet({"text": ["x", "y"], "n": ["n" * 9 * MB, "n"]}),
        rows=1,
        codes={"row_too_large": 1},
    ),
    "parquet with a large dictionary": Case(
        "a.parquet",
        lambda: parquet(
            {
                "text": ["x"] * 50_000,
                "n": pa.array([f"{n % 20_000:0100d}" for n in range(50_000)]).dictionary_encode(),
            }
        ),
        rows=50_000,
        written=20 * MB,
    ),
    "parquet with a long list": Case(
        "a.parquet",
        lambda: parquet({"n": pa.array([[0] * 30 * MB], pa.list_(pa.int32()))}),
        "cannot be read in the memory that there is",
    ),
    "parquet with lists and extensions": Case(
        "a.parquet",
        lambda: parquet(
            {
                **ROW_OF,
                "n": [[["a"], []], None, [[None]]],
                "u": pa.array([b"0" * 16] * 3, pa.uuid()),
                "j": pa.array(["{}"] * 3, pa.json_()),
            }
        ),
        rows=3,
    ),
    "parquet with 20,000 columns": Case(
        "a.parquet",
        lambda: parquet({f"c{n}": [n] for n in range(20_000)}),
        "20001 columns, more than 1024",
    ),
    "parquet with 20,000 row groups": Case(
        "a.parquet",
        lambda: parquet({"text": ["x"] * 20_000}, row_group_size=1),
        "20000 row groups, more than 10000",
    ),
    "parquet with a deep schema": Case(
        "a.parquet",
        lambda: parquet({"n": pa.nulls(1, deep_type(3000))}, store_schema=False),
        "not a Parquet file that can be read",
    ),
    "parquet with a footer of 2 GB": Case(
        "a.parquet", lambda: with_footer_length(2**31 - 1), "footer has 2147483647 bytes"
    ),
    "parquet with a footer of nearly all": Case(
        "a.parquet",
        lambda: with_footer_length(len(parquet()) - 12),
        "not a Parquet file that can be read",
    ),
    "parquet that is none": Case(
        "a.parquet", lambda: b"PAR1" + bytes(8) + b"PAR1", "not a Parquet file that can be read"
    ),
}
for codec in ("snappy", "lz4", "gzip", "brotli", "zstd"):
    CASES[f"parquet with {codec} pages that say 134 MB"] = Case(
        "a.parquet", partial(lying_pages, codec, 2**27 - 1), "cannot be read in the memory that there is"
    )
    CASES[f"parquet with {codec} pages that say 20 MB"] = Case(
        "a.parquet", partial(lying_pages, codec, 20 * MB), codes={"invalid_row_group": 1}
    )


@pytest.mark.parametrize("name", CASES)
def test_no_input_takes_much_memory_and_each_tells_what_is_wrong(name: str, tmp_path: Path) -> None:
    """Of the process that reads it and of the one that it has for Parquet."""
    case = CASES[name]
    found = ran(case.name, case.make(), tmp_path)
    if case.error:
        assert case.error in (found["error"] or "")
    else:
        assert (found["error"], found["rows"], found["codes"]) == (None, case.rows, case.codes)
    assert found["bytes"] <= case.written
    assert max(found["peaks_mib"]) < PEAK_MIB


@pytest.mark.parametrize("name", sorted(path.name for path in CASES_FOLDER.glob("*")))
def test_files_that_went_wrong_elsewhere_are_bounded(name: str, tmp_path: Path) -> None:
    """Whatever becomes of them."""
    found = ran(name.replace("dot_", "."), (CASES_FOLDER / name).read_bytes(), tmp_path)
    assert max(found["peaks_mib"]) < PEAK_MIB


@pytest.mark.parametrize("seed", range(6))
def test_damaged_parquet_is_rows_or_a_refusal(seed: int, tmp_path: Path) -> None:
    """Wherever the damage is; never an error of the reader's own."""
    data = bytearray(parquet({"text": [f"text {n**9}" for n in range(9000)]}, row_group_size=3000))
    random_ = random.Random(seed)
    for _ in range(3):
        data[random_.randrange(len(data) - 8)] = random_.randrange(256)
    found = ran("a.parquet", bytes(data), tmp_path)
    assert found["error"] or found["rows"] or found["codes"]
    assert max(found["peaks_mib"]) < PEAK_MIB
