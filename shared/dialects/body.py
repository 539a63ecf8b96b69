"""Shared by all dialects: decoding a body to a struct, reading inputs, naming fields.

Does not know HTTP or any one dialect.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, TypeAlias, TypeVar, Union, get_args

import msgspec

from shared.contracts import TextInput, is_blank
from shared.dialects import decode_errors
from shared.dialects.expected_types import NAME
from shared.errors import BlitzError, EmptyInput, InvalidInput, UnsupportedMediaType
from shared.wire import codec

JSON = "application/json"

# For the API's description only: empty values are refused after decoding, as EmptyInput.
Text: TypeAlias = Annotated[str, msgspec.Meta(extra_json_schema={"minLength": 1})]
NOT_EMPTY = msgspec.Meta(extra_json_schema={"minItems": 1})
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1, extra={NAME: "token id"})]
TokenIds: TypeAlias = Annotated[list[TokenId], NOT_EMPTY]
Inputs: TypeAlias = Text | Annotated[list[Text | TokenId | TokenIds], NOT_EMPTY]

_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s;\"]+)", re.IGNORECASE)
_UTF_8 = ("utf-8", "utf8", "utf-8-sig")
_LISTED = 100
_ABSENT = msgspec.Raw(b"null")
_SYNONYMS = {"dimensions": "output_dimension", "truncate": "truncation"}
"""Fields that contracts, OpenAI and TEI have, and what Voyage and Mistral call them."""

T = TypeVar("T", bound=msgspec.Struct)


class _DistinctiveFields(msgspec.Struct):
    """Fields that distinguish the operations of a path. Their values are skipped, not decoded."""

    inputs: msgspec.Raw = _ABSENT
    texts: msgspec.Raw = _ABSENT
    documents: msgspec.Raw = _ABSENT
    property: msgspec.Raw = _ABSENT
    top_k: msgspec.Raw = _ABSENT
    top_n: msgspec.Raw = _ABSENT
    truncation: msgspec.Raw = _ABSENT


PresentFields: TypeAlias = Mapping[str, bool]
"""Distinctive fields that are present and not null -> whether the value is an object."""


def read_present_fields(data: bytes, content_type: str) -> PresentFields:
    """The distinctive fields of a body; none if it is invalid, which decode_body reports later."""
    try:
        if media_type_of(content_type) == codec.CONTENT_TYPE:
            body = codec.unpack(data, max_bytes=len(data))
            found = {name: body.get(name) for name in _DistinctiveFields.__struct_fields__}
            return {name: type(value) is dict for name, value in found.items() if value is not None}
        marks = msgspec.structs.asdict(msgspec.json.decode(without_bom(data), type=_DistinctiveFields))
        starts = {name: bytes(memoryview(raw)[:1]) for name, raw in marks.items()}
        return {name: start == b"{" for name, start in starts.items() if start != b"n"}
    except (InvalidInput, AttributeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


class _Named(msgspec.Struct):
    model: Any = None


def read_model(data: bytes, content_type: str) -> str:
    """The model that a body names, even if the body is invalid otherwise; "" if none."""
    try:
        if media_type_of(content_type) == codec.CONTENT_TYPE:
            named = codec.unpack(data, max_bytes=len(data)).get("model")
        else:
            named = msgspec.json.decode(without_bom(data), type=_Named).model
    except (InvalidInput, AttributeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return named if isinstance(named, str) else ""


def decode_body(data: bytes, content_type: str, kind: type[T]) -> T:
    """JSON or msgpack -> `kind`, a msgspec Struct. An absent content type means JSON.

    Raises InvalidInput with the field's path, UnsupportedMediaType.
    """
    media_type = media_type_of(content_type)
    try:
        if media_type == JSON:
            _check_charset(content_type, data)
            return msgspec.json.decode(without_bom(data), type=kind)
        if media_type == codec.CONTENT_TYPE:
            return msgspec.convert(codec.unpack(data, max_bytes=len(data)), type=kind)
    except msgspec.ValidationError as error:
        raise decode_errors.type_error(error, kind) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise decode_errors.json_error(error, data) from error
    raise UnsupportedMediaType(f"send {JSON} or {codec.CONTENT_TYPE} as Content-Type")


def fill_from_query(body: T, query: Mapping[str, str], names: Sequence[str]) -> T:
    """`body`, a Struct, with those fields of `names` that are None set from the query string.

    An empty value counts only for fields that accept any text, as prompt_name=.
    Raises InvalidInput naming the parameter, even one that the body overrides.
    """
    said = {name: query[name] for name in names if name in query}
    if not said:
        return body
    for field in msgspec.structs.fields(type(body)):
        kind = value_type(field.type)
        if field.name in said and (said[field.name] or kind is str):
            try:
                value = msgspec.convert(said[field.name], kind, strict=False)
            except msgspec.ValidationError as error:
                raise decode_errors.value_error(field.name, field.type) from error
            if getattr(body, field.name) is None:
                body = msgspec.structs.replace(body, **{field.name: value})
    return body


def value_type(kind: Any) -> Any:
    """A field's type in a query string: without None, because "null" is a text there."""
    return Union[tuple(each for each in get_args(kind) if each is not NoneType)]  # noqa: UP007 - at run time


def read_inputs(value: Inputs, *, field: str, max_inputs: int) -> tuple[TextInput, ...]:
    """One text, texts, one list of ids, or lists of ids -> a tuple of inputs, none empty.

    Ids directly in the list are one input: [7592, 2088] is a text of two tokens.
    Raises EmptyInput and InvalidInput naming `field`, with the index where there is one.
    """
    if not value:
        raise EmptyInput(f"{field} is empty: send at least one text", field=field)
    if isinstance(value, str):
        return (value,)
    if all(isinstance(item, int) for item in value):
        return (tuple(item for item in value if isinstance(item, int)),)
    check_count(len(value), field=field, max_inputs=max_inputs)
    inputs: list[TextInput] = []
    for index, item in enumerate(value):
        if isinstance(item, int):
            raise InvalidInput("the list mixes ids and texts: send one kind", field=f"{field}[{index}]")
        if not item:
            raise EmptyInput(f"{field}[{index}] is empty: send a text", field=f"{field}[{index}]")
        inputs.append(item if isinstance(item, str) else tuple(item))
    return tuple(inputs)


def check_count(count: int, *, field: str, max_inputs: int) -> None:
    """Raises InvalidInput naming `field` if a request has more than `max_inputs` inputs."""
    if count > max_inputs:
        raise InvalidInput(f"{field} has {count} items: at most {max_inputs} are allowed", field=field)


def read_documents(texts: Sequence[str], *, field: str, max_inputs: int) -> tuple[str, ...]:
    """The documents of a rerank. Blank ones are allowed and rank last.

    Raises InvalidInput for too many, EmptyInput if all are blank.
    """
    check_count(len(texts), field=field, max_inputs=max_inputs)
    if all(map(is_blank, texts)):
        raise EmptyInput(f"{field} has no text: send at least one", field=field)
    return tuple(texts)


def join_indices(indices: Sequence[int]) -> str:
    """Indices for a sentence, as "0, 17"; at most _LISTED of them."""
    named = ", ".join(map(str, indices[:_LISTED]))
    return f"{named} and others" if len(indices) > _LISTED else named


def rename(field: str, names: Mapping[str, str]) -> str:
    """A contract's field in a dialect's terms: documents[3] -> texts[3] by {"documents": "texts"}."""
    name, bracket, index = field.partition("[")
    return names.get(name, name) + bracket + index


def in_words_of(body: object, error: BlitzError) -> BlitzError:
    """`error` with the names that the caller used, where a dialect has two names for one field."""
    names = {
        ours: theirs
        for ours, theirs in _SYNONYMS.items()
        if getattr(body, ours, None) is None and getattr(body, theirs, None) is not None
    }
    message = error.message
    for ours, theirs in names.items():
        message = re.sub(rf"(?<![\w.-]){ours}(?![\w.-])", theirs, message)
    field = error.field and rename(error.field, names)
    return type(error)(message, field=field, retry_after_s=error.retry_after_s)


def message_of(error: BlitzError, name: Callable[[str], str]) -> str:
    """The message with the field's name in it, for shapes without a field. name: renames a field."""
    if not error.field:
        return error.message
    field = name(error.field)
    message = re.sub(rf"(?<!\w){re.escape(error.field)}(?!\w)", lambda _: field, error.message)
    return message if field in message else f"{field}: {message}"


def without_bom(data: bytes) -> bytes:
    """Without the byte order mark that some Windows tools put before UTF-8."""
    return data.removeprefix(codecs.BOM_UTF8)


def _check_charset(content_type: str, data: bytes) -> None:
    """Raises UnsupportedMediaType for other charsets: decoded as UTF-8, their texts would change."""
    named = _CHARSET.search(content_type)
    if named and named[1].lower() not in _UTF_8 and not data.isascii():
        raise UnsupportedMediaType(f"send {JSON} in UTF-8, its only charset")


def media_type_of(content_type: str) -> str:
    """The media type without parameters; JSON if absent."""
    return content_type.partition(";")[0].strip().lower() or JSON
