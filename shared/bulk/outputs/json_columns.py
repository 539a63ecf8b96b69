"""The input fields of a chunk's rows as JSON values: what JSONL output has besides ids and vectors.

It does not know files. JSON has fewer types than Arrow: decimals and other rare ones become strings,
bytes base64, durations counts of their unit, times UTC with microseconds, NaN and infinity null.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping

import msgspec
import orjson

from shared.bulk import arrow as pa
from shared.bulk.rows import OWN_COLUMNS

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def other_fields(chunk: pa.Table) -> Iterator[Mapping[str, orjson.Fragment]]:
    """For each row: the fields that are not the service's own, by name, ready to be dumped.

    Those of JSON input are there byte for byte.
    """
    if "fields" in chunk.column_names:
        for text in chunk["fields"].to_pylist():
            values = {} if text is None else _OBJECT.decode(text)
            yield {name: orjson.Fragment(bytes(raw)) for name, raw in values.items()}
        return
    names = [name for name in chunk.column_names if name not in OWN_COLUMNS]
    columns = [_values(chunk[name]) for name in names]
    for index in range(chunk.num_rows):
        yield {
            name: orjson.Fragment(orjson.dumps(column[index], default=_default))
            for name, column in zip(names, columns, strict=True)
        }


def _values(column: pa.ChunkedArray) -> list[object]:
    target = _plain(column.type)
    column = column if target == column.type else column.cast(target, safe=False)
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        pass  # dates after the year 9999, strings that are no UTF-8: a row must not stop the job
    found: list[object] = []
    for value in column:
        try:
            found.append(value.as_py())
        except (ValueError, OverflowError):
            found.append(None)
    return found


def _plain(type_: pa.DataType) -> pa.DataType:
    """The type whose values Python has without nanoseconds and time zones."""
    if isinstance(type_, pa.BaseExtensionType):
        return type_
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us")
    if pa.types.is_time64(type_):
        return pa.time64("us")
    if pa.types.is_duration(type_):
        return pa.int64()
    if pa.types.is_dictionary(type_):
        return _plain(type_.value_type)
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(_plain(type_.value_type), type_.list_size)
    if pa.types.is_large_list(type_):
        return pa.large_list(_plain(type_.value_type))
    if pa.types.is_list(type_):
        return pa.list_(_plain(type_.value_type))
    if pa.types.is_map(type_):
        return pa.map_(type_.key_type, _plain(type_.item_type))
    if pa.types.is_struct(type_):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in type_])
    return type_


def _default(value: object) -> object:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
