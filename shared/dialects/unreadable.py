"""What to tell of a body or parameter that cannot be read: which field, and what would be right.

Does not know any one dialect. Nothing that a client sent is repeated, but names of fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from shared import wire
from shared.errors import InvalidInput

SEARCHED_BYTES = 1_000_000
"""Finding the field takes building the whole body, skipped parts too: not of one larger than this."""

_AT_PATH = re.compile(r" - at `(?:key` in `)?\$\.?(?P<field>[^`]*)`$")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]*)`")
_AT_BYTE = re.compile(r"\(byte (?P<byte>\d+)\)$")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_.\[\]]{1,100}")


def not_of_type(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> InvalidInput:
    """JSON or msgpack, but not of the types that `kind` has."""
    message = str(error)
    found = _AT_PATH.search(message) or _MISSING.search(message)
    field = found["field"] if found else ""
    if message.startswith("Invalid enum value"):
        return not_a_value(field, _type_at(kind, field))
    if not field:
        return InvalidInput(f"the body is of another type: {message}")
    return InvalidInput(_AT_PATH.sub("", message), field=field)


def not_a_value(field: str, kind: Any) -> InvalidInput:
    """A string that does not stand for any value of a Literal or, where `kind` has none, of a Count."""
    choices = choices_of(kind)
    wanted = f"one of {', '.join(choices)}" if choices else "a whole number, 1 or more"
    return InvalidInput(f"{field} must be {wanted}", field=field)


def choices_of(kind: Any) -> list[str]:
    """The strings of a Literal, in whatever `kind` it stands; none if there is no Literal."""
    return [part for part in _parts(kind) if isinstance(part, str)]


def not_json(error: Exception, data: bytes) -> InvalidInput:
    """The decoder's DecodeError, UnicodeDecodeError or RecursionError, said so that it can be mended."""
    if isinstance(error, RecursionError):
        return InvalidInput(
            f"the body nests too deeply: {wire.MAX_DEPTH} levels are more than any field needs"
        )
    if not data:
        return InvalidInput("the body is empty: send a JSON object")
    path = _not_unicode(data)
    if path is not None:
        field = path if _PLAIN_PATH.fullmatch(path) else None
        # A lone surrogate is what JavaScript leaves of an emoji that it cuts in the middle.
        return InvalidInput(
            f"{field or 'a text'} is not valid Unicode: send UTF-8, no lone surrogates", field=field
        )
    if isinstance(error, UnicodeDecodeError):
        return InvalidInput("the body is not valid JSON: it is not in UTF-8")
    at = _AT_BYTE.search(str(error))
    if at and data[int(at["byte"]) :].startswith((b"NaN", b"Infinity")):
        return InvalidInput(f"the body is not valid JSON, which has no NaN or Infinity {at[0]}")
    return InvalidInput(f"the body is not valid JSON: {error}")


def _type_at(kind: Any, path: str) -> Any:
    """What the struct `kind` says of a path of the decoder, such as parameters.kinds[1]."""
    for name in path.split("."):
        structs = (part for part in _parts(kind) if isinstance(part, type))
        fields = {
            field.encode_name: field.type
            for struct in structs
            if issubclass(struct, msgspec.Struct)
            for field in msgspec.structs.fields(struct)
        }
        kind = fields[name.partition("[")[0]]
    return kind


def _parts(kind: Any) -> list[Any]:
    """A type and all that it is put together of; for a Literal, its values."""
    return [kind, *(part for each in get_args(kind) for part in _parts(each))]


def _not_unicode(data: bytes) -> str | None:
    """The path of a text in small JSON that holds bytes of no character, or half of a surrogate pair."""
    if len(data) > SEARCHED_BYTES:
        return None
    try:
        texts = _texts(json.loads(data.decode("utf-8", "surrogateescape")))
        return next((path for path, text in texts if _SURROGATE.search(text)), None)
    except (ValueError, RecursionError):
        return None


def _texts(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string in `value` with its path; of a key, the path of what it names."""
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
