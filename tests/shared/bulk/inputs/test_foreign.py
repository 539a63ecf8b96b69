"""shared/bulk/inputs/foreign.py: files of other programs, made by those, under names that are ours."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import sqlite3
import tarfile
import wave
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from pyarrow import feather, orc

from shared.bulk.inputs.detect import HEAD_BYTES, InputFormat, ReadOptions, detect_format
from shared.errors import InvalidInput
from tests.server import ROOT
from tests.shared.bulk.sources import read_all

CASES_FOLDER = ROOT.parent / "shared" / "data" / "cases"
LINES = b"".join(b'{"id": "r%d", "text": "a text with the number %d"}\n' % (n, n**7) for n in range(200))
TABLE = pa.table({"text": ["one", "two"], "n": [1, 2]})


def tar(kind: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        member = tarfile.TarInfo("texts.jsonl")
        member.size = len(LINES)
        archive.addfile(member, io.BytesIO(LINES))
    return file.getvalue()


def old_tar() -> bytes:
    """As before POSIX: no magic word, a sum alone."""
    data = bytearray(tar(tarfile.USTAR_FORMAT))
    data[148:156], data[257:512] = b" " * 8, bytes(255)
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr(name, "<x/>" * 100)
    return file.getvalue()


def made_by(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def arrow(writer: Callable[..., pa.RecordBatchWriter]) -> bytes:
    sink = pa.BufferOutputStream()
    with writer(sink, TABLE.schema) as stream:
        stream.write_table(TABLE)
    return bytes(sink.getvalue())


def sqlite() -> bytes:
    with sqlite3.connect(":memory:") as database:
        database.execute("create table texts (text)")
        return database.serialize()


def sound(file: io.BytesIO) -> None:
    with wave.open(file, "wb") as stream:
        stream.setparams((1, 2, 8000, 0, "NONE", ""))
        stream.writeframes(bytes(100))


FOREIGN: dict[str, tuple[Callable[[], bytes], str]] = {
    "tar": (tar, "a tar archive: send each of the files"),
    "tar of GNU": (lambda: tar(tarfile.GNU_FORMAT), "a tar archive"),
    "old tar": (old_tar, "a tar archive"),
    "bzip2": (lambda: bz2.compress(LINES), "packed with bzip2: send the file itself, packed with gzip"),
    "bzip2 of nothing": (lambda: bz2.compress(b""), "packed with bzip2"),
    "xz": (lambda: lzma.compress(LINES), "packed with xz"),
    "lzma": (lambda: lzma.compress(LINES, format=lzma.FORMAT_ALONE), "packed with lzma"),
    "lz4": (lambda: bytes(pa.Codec("lz4").compress(LINES)), "packed with lz4"),
    "snappy frames": (lambda: b"\xff\x06\0\0sNaPpY\x01\x05\0\0\0\0\0\0x", "packed with snappy"),
    "brotli": (lambda: bytes(pa.Codec("brotli").compress(LINES)), "binary"),
    "raw snappy": (lambda: bytes(pa.Codec("snappy").compress(LINES)), ""),
    "zlib": (lambda: zlib.compress(LINES), "binary"),
    "compress": (lambda: b"\x1f\x9d\x90" + bytes(range(256)), "packed with compress"),
    "gzip in gzip": (lambda: gzip.compress(LINES), "packed twice, with gzip within"),
    "zstd in gzip": (
        lambda: zstandard.ZstdCompressor().compress(LINES),
        "packed twice, with zstd within",
    ),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c\0\x04" + bytes(100), "a 7z archive"),
    "rar": (lambda: b"Rar!\x1a\x07\x01\0" + bytes(100), "a RAR archive"),
    "zip": (lambda: zipped("texts.jsonl"), "a zip archive: send each of the files in it"),
    "zip of nothing": (
        lambda: made_by(lambda file: zipfile.ZipFile(file, "w").close()),
        "a zip archive",
    ),
    "xlsx": (
        lambda: zipped("xl/workbook.xml"),
        "an Excel workbook (.xlsx): save the sheet as CSV UTF-8",
    ),
    "docx": (lambda: zipped("word/document.xml"), "a Word document"),
    "pptx": (lambda: zipped("ppt/presentation.xml"), "a PowerPoint file"),
    "xls": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), "an old Office file"),
    "rtf": (lambda: b"{\\rtf1\\ansi hello}\n", "an RTF document"),
    "pdf": (lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "a PDF"),
    "pdf behind a line end": (lambda: b"\r\n%PDF-1.4\n1 0 obj\n", "a PDF"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image"),
    "jpeg": (lambda: b"\xff\xd8\xff\xe0\0\x10JFIF\0", "a JPEG image"),
    "gif": (lambda: b"GIF89a\x01\0\x01\0", "a GIF image"),
    "webp": (lambda: b"RIFF\x24\0\0\0WEBPVP8 ", "a WebP image"),
    "tiff": (lambda: b"II*\0\x08\0\0\0", "a TIFF image"),
    "bmp": (lambda: b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0", "a BMP image"),
    "mp4": (lambda: b"\0\0\0\x20ftypisom\0\0\x02\0", "an image or a video"),
    "wav": (lambda: made_by(sound), "a recording"),
    "sqlite": (sqlite, "an SQLite database"),
    **{
        f"pickle {protocol}": (lambda p=protocol: pickle.dumps(["a", "b"], p), "a Python pickle")  # type: ignore[misc]
        for protocol in (2, 3, 4, 5)
    },
    "pickle of a dict": (lambda: pickle.dumps({"text": ["a"]}), "a Python pickle"),
    "npy": (lambda: made_by(lambda file: np.save(file, np.zeros(9))), "a NumPy array"),
    "npz": (lambda: made_by(lambda file: np.savez(file, a=np.zeros(9))), "a NumPy archive"),
    "arrow": (lambda: arrow(pa.ipc.new_file), "an Arrow or Feather file: write it as Parquet"),
    "arrow stream": (lambda: arrow(pa.ipc.new_stream), "an Arrow stream"),
    "feather": (lambda: made_by(lambda file: feather.write_feather(TABLE, file)), "Feather file"),
    "orc": (lambda: made_by(lambda file: orc.write_table(TABLE, file)), "an ORC file"),
    "avro": (lambda: b"Obj\x01\x04\x16avro.schema" + bytes(50), "an Avro file"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
    ".DS_Store": (lambda: b"\0\0\0\x01Bud1" + bytes(500), "a .DS_Store of macOS"),
    "program": (lambda: Path("/proc/self/exe").read_bytes()[:5000], "a program"),
    "pointer of LFS": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
        "a pointer of Git LFS",
    ),
    "html": (lambda: b"\n<!DOCTYPE HTML>\n<html><body>404</body></html>\n", "HTML"),
    "html behind a comment": (lambda: b"<!-- a\nb --> <html>\n", "HTML"),
    "xml": (lambda: b'\xef\xbb\xbf<?xml version="1.0"?>\n<Error/>\n', "XML"),
    "utf-16": (lambda: LINES.decode().encode("utf-16"), "UTF-16: save it as UTF-8"),
    "utf-16 without a BOM": (lambda: LINES.decode().encode("utf-16-le"), "UTF-16"),
    "utf-16 of big ends": (lambda: LINES.decode().encode("utf-16-be"), "UTF-16"),
    "utf-32": (lambda: LINES.decode().encode("utf-32"), "UTF-32"),
    "latin-1": (
        lambda: "text\nfür\nschön\nüber\n".encode("latin-1"),
        "not in UTF-8, 3 of its first 4 lines",
    ),
    "windows-1251": (lambda: ("привет\n" * 9).encode("cp1251"), "not in UTF-8"),
    "random bytes": (lambda: np.random.default_rng(1).bytes(5000), "binary"),
    "zeros": (lambda: bytes(5000), "5000 zero bytes"),
    "old Mac's line ends": (lambda: b"text\rone\rtwo\r", "carriage return alone"),
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.txt", "a", "a.parquet"])
@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_another_format_is_refused_by_what_it_is(case: str, name: str) -> None:
    """Whatever its name says, packed or not; and never one of its lines becomes a text."""
    make, found = FOREIGN[case]
    data = make()
    for each in (data, gzip.compress(data)):
        if each is data and case in ("gzip in gzip", "zstd in gzip"):
            continue
        with pytest.raises(InvalidInput) as refused:
            detect_format(name, each[:HEAD_BYTES], ReadOptions())
        if name != "a.parquet":
            assert found in refused.value.message
        assert refused.value.message.isprintable()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.csv.bz2", "packed with bzip2 (.bz2)"),
        ("a.jsonl.br", "packed with Brotli (.br)"),
        ("a.csv.lz4", "packed with lz4"),
        ("m/a.csv.Z", "packed with compress"),
        ("a.tar.gz", "an archive (.tar)"),
        ("a.tgz", "an archive (.tgz)"),
        ("a.zip", "an archive (.zip)"),
        ("a.pdf", "ends in .pdf"),
        ("a.XLSX", "ends in .xlsx"),
        ("a.xml.gz", "ends in .xml"),
        ("a.html", "ends in .html"),
        ("a.npy", "ends in .npy"),
    ],
)
def test_a_name_that_says_another_format_is_refused(name: str, reason: str) -> None:
    """Its lines would become texts; who means that says so."""
    with pytest.raises(InvalidInput) as refused:
        detect_format(name, b"one\ntwo\n", ReadOptions())
    assert reason in refused.value.message
    if name.endswith("ml"):
        assert detect_format(name, b"<p>\ntwo\n", ReadOptions(kind="text")) == InputFormat("text")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.csv", b"PAR1" + bytes(50), "the file is Parquet: let its name end in .parquet"),
        ("a.parquet", b"id,text\n1,x\n", "not Parquet, it does not begin with PAR1: rename it"),
        ("a.jsonl", b"id,text\n1,x\n", "no line at its beginning is an object: let its name"),
        ("a.jsonl", b'{\n  "id": 1,\n  "text": "x"\n}\n', "one object on each line, not over several"),
        ("a.json", b'[\n{"text": "x"}\n]\n', "a JSON array"),
        ("a.csv", b'{"id": 1, "text": "x"}\n', "no column text, it has"),
    ],
)
def test_one_of_our_formats_under_another_s_name_is_refused(name: str, data: bytes, reason: str) -> None:
    """All its rows would fail, or worse."""
    with pytest.raises(InvalidInput) as refused:
        read_all(name, data)
    assert reason in refused.value.message


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", "Zürich\nB\n".encode()),
        ("a.txt", b"BZh is how some begin\n"),
        ("a.txt", b"ORd\nPK is a street\nMZ\n"),
        ("a.txt", b"2 < 3\n<b>bold</b>\n"),
        ("a.txt", b"one\nt\x00wo, and some more text after it\n"),
        ("a.txt", b"\x1b[1mbold\x1b[0m\n\tone\x0c\n"),
        ("a.csv", b"text\nf\xfcr\none\ntwo\nthree\n"),
        ("a.jsonl", b'nonsense\n{"text":"x"}\n'),
        ("a.jsonl", b""),
        ("notes.of.january", b"one\n"),
    ],
)
def test_texts_are_not_taken_for_anything_else(name: str, data: bytes) -> None:
    """What looks like it at first, and single rows that are wrong."""
    assert detect_format(name, data, ReadOptions()).kind in ("text", "csv", "jsonl")


@pytest.mark.skipif(not CASES_FOLDER.is_dir(), reason="only beside a checkout of the project's own")
def test_the_archive_that_was_taken_for_a_text() -> None:
    data = (CASES_FOLDER / "texts.tar.gz").read_bytes()
    for name in ("texts.tar.gz", "texts.gz", "texts.jsonl.gz"):
        with pytest.raises(InvalidInput, match="archive"):
            detect_format(name, data, ReadOptions())
