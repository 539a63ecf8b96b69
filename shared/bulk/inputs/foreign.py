"""Recognises files in unsupported formats by their first bytes or their name, and refuses them.

It does not know storage or jobs, or how the supported formats are told apart.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

from shared.errors import InvalidInput
from shared.wording import counted

_TABLE = "send JSON lines, CSV, Parquet or a text a line"
_PACK = "send the file itself, packed with gzip or zstd or not at all"
_UNPACK = "send each of the files in it by itself"
_EXPORT = "save its table as CSV or Parquet"
_ENCODING = "save it as UTF-8"

_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\xff\xfe\0\0", "UTF-32", _ENCODING),
    (b"\0\0\xfe\xff", "UTF-32", _ENCODING),
    (b"\xff\xfe", "UTF-16", _ENCODING),
    (b"\xfe\xff", "UTF-16", _ENCODING),
    (b"\x1f\x8b", "packed twice, with gzip within", _PACK),
    (b"\x28\xb5\x2f\xfd", "packed twice, with zstd within", _PACK),
    (b"\xfd7zXZ\0", "packed with xz", _PACK),
    (b"\x5d\0\0", "packed with lzma", _PACK),
    (b"\x04\x22\x4d\x18", "packed with lz4", _PACK),
    (b"\x02\x21\x4c\x18", "packed with lz4", _PACK),
    (b"\xff\x06\0\0sNaPpY", "packed with snappy", _PACK),
    (b"LZIP", "packed with lzip", _PACK),
    (b"\x89LZO\0", "packed with lzop", _PACK),
    (b"\x1f\x9d", "packed with compress (.Z)", _PACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"MSCF\0\0\0\0", "a cabinet archive", _UNPACK),
    (b"!<arch>\n", "an ar archive", _UNPACK),
    (b"{\\rtf", "an RTF document", _TABLE),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file (.xls, .doc)", _EXPORT),
    (b"\x89PNG\r\n", "a PNG image", _TABLE),
    (b"\xff\xd8\xff", "a JPEG image", _TABLE),
    (b"GIF87a", "a GIF image", _TABLE),
    (b"GIF89a", "a GIF image", _TABLE),
    (b"II*\0", "a TIFF image", _TABLE),
    (b"MM\0*", "a TIFF image", _TABLE),
    (b"ID3\x03", "an MP3 recording", _TABLE),
    (b"ID3\x04", "an MP3 recording", _TABLE),
    (b"OggS\0", "an Ogg recording", _TABLE),
    (b"fLaC\0", "a FLAC recording", _TABLE),
    (b"\x1aE\xdf\xa3", "a Matroska video", _TABLE),
    (b"SQLite format 3\0", "an SQLite database", _EXPORT),
    (b"\x93NUMPY", "a NumPy array", _TABLE),
    (b"ARROW1\0\0", "an Arrow or Feather file", "write it as Parquet"),
    (b"FEA1", "a Feather file", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    (b"PARE", "an encrypted Parquet file", "write it without encryption"),
    (b"\x89HDF\r\n", "an HDF5 file", "write it as Parquet"),
    (b"\0\0\0\x01Bud1", "a .DS_Store of macOS", _TABLE),
    (b"\x7fELF", "a program", _TABLE),
    (b"MZ\x90\0", "a program", _TABLE),
    (b"\xca\xfe\xba\xbe", "a program", _TABLE),
    (b"\0asm", "a program", _TABLE),
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS", "send the file it stands for"),
)

_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
_PICKLE = re.compile(rb"\x80[\x02-\x05][\x95c}\](\x8cX]")
_MATCHES: tuple[tuple[Callable[[bytes], bool], str, str], ...] = (
    (
        lambda head: _BZIP2.match(head) is not None,
        "packed with bzip2",
        _PACK,
    ),
    (lambda head: _is_tar(head), "a tar archive", _UNPACK),
    (lambda head: b"%PDF-" in head[:1024] and b"%PDF-" in head.lstrip()[:8], "a PDF", _TABLE),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", "a WebP image", _TABLE),
    (lambda head: head[:4] == b"RIFF" and head[8:12] in (b"WAVE", b"AVI "), "a recording", _TABLE),
    (lambda head: head[:2] == b"BM" and head[6:10] == bytes(4), "a BMP image", _TABLE),
    (
        lambda head: head[4:8] == b"ftyp" and head[:2] == bytes(2),
        "an image or a video",
        _TABLE,
    ),
    (lambda head: head[8:12] == b"DUCK", "a DuckDB database", _EXPORT),
    (lambda head: _PICKLE.match(head) is not None, "a Python pickle", "write it as Parquet"),
    (
        lambda head: head[:4] == b"\xff\xff\xff\xff" and head[6:8] == bytes(2),
        "an Arrow stream",
        "write it as Parquet",
    ),
)

_IN_ZIP: tuple[tuple[bytes, str, str], ...] = (
    (b"xl/", "an Excel workbook (.xlsx)", "save the sheet as CSV UTF-8"),
    (b"word/", "a Word document (.docx)", _TABLE),
    (b"ppt/", "a PowerPoint file (.pptx)", _TABLE),
    (b"opendocument.spreadsheet", "an OpenDocument spreadsheet (.ods)", "save the sheet as CSV UTF-8"),
    (b"opendocument", "an OpenDocument file", _TABLE),
    (b"epub", "an EPUB book", _TABLE),
    (b".npy", "a NumPy archive (.npz)", _TABLE),
)

_MARKUP = re.compile(
    rb"(?:\s|<!--.*?-->)*(?P<tag><!doctype html|<html|<head|<body|<svg|<\?xml)",
    re.IGNORECASE | re.DOTALL,
)

_PACKED = {
    **{"bz2": "bzip2", "bz": "bzip2", "xz": "xz", "lzma": "lzma", "lz4": "lz4", "br": "Brotli"},
    **{"sz": "snappy", "snappy": "snappy", "lz": "lzip", "lzo": "lzop", "z": "compress", "zz": "zlib"},
}
_ARCHIVES = frozenset(
    ("tar", "tgz", "tbz", "tbz2", "txz", "tzst", "zip", "7z", "rar", "jar", "cab", "iso", "dmg")
)
_OTHERS = frozenset(
    (
        *(
            "pdf",
            "doc",
            "docx",
            "xls",
            "xlsx",
            "xlsm",
            "xlsb",
            "ppt",
            "pptx",
            "odt",
            "ods",
            "rtf",
            "epub",
        ),
        *("png", "jpg", "jpeg", "gif", "webp", "bmp", "tif", "tiff", "heic", "svg", "mp3", "mp4", "wav"),
        *(
            "db",
            "sqlite",
            "sqlite3",
            "duckdb",
            "mdb",
            "pkl",
            "pickle",
            "npy",
            "npz",
            "pt",
            "safetensors",
        ),
        *("arrow", "feather", "ipc", "orc", "avro", "h5", "hdf5", "html", "htm", "xhtml", "xml"),
        *("epub", "exe", "dll", "so", "bin", "class", "wasm", "onnx", "safetensors"),
    )
)

_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\v\f\x1b"))
_FEW_CONTROLS = 3
"""Control characters that a text may contain by mistake, however short it is."""
_NOT_NULS = bytes(range(1, 256))


def refuse_foreign(plain: bytes) -> None:
    """plain: beginning of the unpacked file. Raises InvalidInput with its format and what to send."""
    for magic, what, instead in _MAGIC:
        if plain.startswith(magic):
            raise _is(what, instead)
    for matches, what, instead in _MATCHES:
        if matches(plain):
            raise _is(what, instead)
    if plain[:4] in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"):
        for name, what, instead in _IN_ZIP:
            if name in plain:
                raise _is(what, instead)
        raise _is("a zip archive", _UNPACK)


def refuse_name(name: str) -> None:
    """Raises InvalidInput if the name's extension is that of an unsupported format."""
    last = name.rpartition("/")[2].lower()
    stem, _, end = last.rpartition(".")
    if end in ("gz", "gzip", "zst", "zstd"):
        end = stem.rpartition(".")[2]
    elif end in _PACKED and stem:
        raise InvalidInput(
            f"the name says that the file is packed with {_PACKED[end]} (.{end}): {_PACK}"
        )
    if stem and end in _ARCHIVES:
        raise InvalidInput(f"by its name the file is an archive (.{end}): {_UNPACK}")
    if stem and end in _OTHERS:
        raise InvalidInput(
            f"the name ends in .{end}, which is no format that is read: {_TABLE}, or say with the "
            "option kind which of them it is"
        )


def refuse_markup(plain: bytes) -> None:
    """Raises InvalidInput for HTML and XML, whatever the name: saved pages, or a server's error page."""
    found = _MARKUP.match(plain)
    if found is not None:
        raise _is("XML" if found["tag"] == b"<?xml" else "HTML", _TABLE)


def refuse_binary(plain: bytes) -> None:
    """Raises InvalidInput if the file as a whole is not UTF-8 text; single bad lines are allowed."""
    nuls = len(plain.translate(None, _NOT_NULS))
    if nuls * 10 >= len(plain) > 0:
        even, odd = plain[::2].count(0), plain[1::2].count(0)
        if (
            len(plain) >= 4
            and max(even, odd) * 10 >= len(plain) * 3
            and min(even, odd) * 20 < len(plain)
        ):
            raise _is("UTF-16", _ENCODING)
        raise InvalidInput(f"the file is no text, it has {nuls} zero bytes at its beginning: {_TABLE}")
    *lines, last = plain.split(b"\n")
    lines += [] if lines else [last]  # the last line may be cut within a character
    wrong = sum(not _is_utf8(line) for line in lines)
    controls = len(plain) - len(plain.translate(None, _CONTROLS))
    if wrong and controls * 100 >= len(plain) and controls > _FEW_CONTROLS:
        raise InvalidInput(f"the file is no text, its beginning is binary: {_TABLE}")
    if wrong * 2 > len(lines):
        raise InvalidInput(
            f"the file is not in UTF-8, {wrong} of its first {counted(len(lines), 'line')} cannot be "
            f"read (Latin-1, or one of Windows' encodings?): {_ENCODING}"
        )
    if b"\n" not in plain and b"\r" in plain.rstrip(b"\r"):
        raise InvalidInput("the file's lines end in a carriage return alone: end them in a newline")


def _is(what: str, instead: str) -> InvalidInput:
    return InvalidInput(f"the file is {what}: {instead}")


def _is_tar(head: bytes) -> bool:
    """By the magic `ustar` of POSIX and GNU, or, for older archives, by the first header's checksum."""
    if head[257:262] == b"ustar":
        return True
    digits = head[148:156].strip(b" \0")
    if len(head) < 512 or not re.fullmatch(rb"[0-7]{1,7}", digits):
        return False
    return sum(head[:148]) + 8 * ord(" ") + sum(head[156:512]) == int(digits, 8)


def _is_utf8(line: bytes) -> bool:
    try:
        codecs.utf_8_decode(line, "strict", False)
    except UnicodeDecodeError:
        return False
    return True
