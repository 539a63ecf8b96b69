"""Error messages for bodies and parameters that cannot be decoded: the field, and what is expected.

Never repeats the client's data, except names of fields. Does not know any one dialect.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from shared.dialects import expected_types
from shared.errors import InvalidInput
from shared.wire import codec

SEARCHED_BYTES = 1_000_000
"""Larger bodies are not searched for the field, which takes decoding the whole body."""

_AT_PATH = re.compile(r" - at `(?:key` in `)?\$\.?(?P<field>[^`]*)`$")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]*)`")
_GOT = re.compile(r"got `(?P<kind>\w+)`")
_KINDS = {
    "null": "null",
    "bool": "true or false",
    "int": "a number",
    "float": "a number with a fraction",
    "str": "a text",
    "bytes": "bytes",
    "array": "a list",
    "object": "an object",
}
_AT_BYTE = re.compile(r"\(byte (?P<byte>\d+)\)$")
_UTF_16_AND_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_.\[\]]{1,100}")


def type_error(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> InvalidInput:
    """For a valid body whose values do not have the types of `kind`."""
    message = str(error)
    found, missing = _AT_PATH.search(message), _MISSING.search(message)
    path = found["field"] if found else ""
    if missing:
        field = f"{path}.{missing['field']}" if path else missing["field"]
        return _refusal(
            field, "is missing: give", expected_types.in_words(expected_types.at(kind, field))
        )
    if not path:
        return InvalidInput(f"the body must be an object: {_sent(message, 'it is')}")
    kinds = expected_types.at(kind, path)
    if message.startswith("Invalid enum value"):
        return _refusal(path, "must be", expected_types.in_words(kinds))
    return _refusal(path, "must be", expected_types.in_words(kinds), _sent(message, ", not"))


def value_error(field: str, kind: Any) -> InvalidInput:
    """For a string that is not a value of `kind`, a Literal or a Count."""
    choices = literal_choices(kind)
    right = f"one of {', '.join(choices)}" if choices else "a whole number, 1 or more"
    return InvalidInput(f"{field} must be {right}", field=field)


def literal_choices(kind: Any) -> list[str]:
    """The strings of the Literal inside `kind`; empty if there is none."""
    return expected_types.choices([kind])


def json_error(error: Exception, data: bytes) -> InvalidInput:
    """For the decoder's DecodeError, UnicodeDecodeError or RecursionError, with the remedy."""
    if isinstance(error, RecursionError):
        return InvalidInput(
            f"the body nests too deeply: no field needs more than {codec.MAX_DEPTH} levels"
        )
    if not data:
        return InvalidInput("the body is empty: send a JSON object")
    if data.startswith(_UTF_16_AND_32) or b"\0" in data[:2]:
        # JSON begins with ASCII characters, which contain zero bytes in those encodings.
        return InvalidInput("the body is in UTF-16 or UTF-32: send it in UTF-8")
    path = _not_unicode(data)
    if path is not None:
        field = path if _PLAIN_PATH.fullmatch(path) else None
        # JavaScript produces lone surrogates when it truncates a text inside an emoji.
        return InvalidInput(
            f"{field or 'a text'} is not valid Unicode: send UTF-8, no lone surrogates", field=field
        )
    if isinstance(error, UnicodeDecodeError):
        return InvalidInput("the body is not valid JSON: it is not in UTF-8")
    at = _AT_BYTE.search(str(error))
    if at and data[int(at["byte"]) :].startswith((b"NaN", b"Infinity")):
        return InvalidInput(f"the body is not valid JSON, which has no NaN or Infinity {at[0]}")
    return InvalidInput(f"the body is not valid JSON: {error}")


def _refusal(field: str, verb: str, right: str, sent: str = "") -> InvalidInput:
    """field: a name from the struct, so that the message contains no client data."""
    return InvalidInput(f"{field} {verb} {right or 'something else'}{sent}", field=field)


def _sent(message: str, before: str) -> str:
    """The actual kind, from the decoder's "Expected `int`, got `str`"; "" if not stated."""
    got = _GOT.search(message)
    return f"{before} {_KINDS.get(got['kind'], 'something else')}" if got else ""


def _not_unicode(data: bytes) -> str | None:
    """The path of a text in small JSON with invalid UTF-8 or a lone surrogate."""
    if len(data) > SEARCHED_BYTES:
        return None
    try:
        texts = _texts(json.loads(data.decode("utf-8", "surrogateescape")))
        return next((path for path, text in texts if _SURROGATE.search(text)), None)
    except (ValueError, RecursionError):
        return None


def _texts(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string in `value` with its path; a key has the path of its value."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            below = f"{path}.{key}" if path else key
            yield below, key
            yield from _texts(item, below)
