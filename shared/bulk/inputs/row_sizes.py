"""Decoded bytes of each row of Arrow columns; a dictionary's value counts at every use.

It does not know files. An average per batch would hide one row of 1 GB among many small ones.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared.bulk import arrow as pa

Sizes: TypeAlias = NDArray[np.int64]


def row_sizes(batch: pa.RecordBatch) -> Sizes:
    """(N,) int64: bytes of each row of a batch with N rows, all columns together."""
    total = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        total += value_sizes(column)
    return total


def value_sizes(array: pa.Array) -> Sizes:
    """(N,) int64: bytes of each value. A null counts its type's fixed width, or 0 if there is none."""
    type_ = array.type
    if isinstance(type_, pa.BaseExtensionType):
        return value_sizes(array.storage)
    if (width := _width(type_)) is not None:
        return np.full(len(array), width, np.int64)
    if pa.types.is_dictionary(type_):
        values = np.append(value_sizes(array.dictionary), 0)  # the appended 0 is for nulls
        indices = array.indices.cast(pa.int64()).fill_null(len(values) - 1)
        return np.asarray(values[_numbers(indices)], np.int64)
    if pa.types.is_struct(type_):
        total = np.zeros(len(array), np.int64)
        for index in range(type_.num_fields):
            total += value_sizes(array.field(index))
        return total
    if pa.types.is_map(type_):
        return _between(array.offsets, array.keys) + _between(array.offsets, array.items)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return _between(array.offsets, array.values)
    if pa.types.is_fixed_size_list(type_):
        size = type_.list_size
        values = array.values.slice(array.offset * size, len(array) * size)
        return np.asarray(value_sizes(values).reshape(len(array), size).sum(axis=1), np.int64)
    if pa.types.is_string_view(type_) or pa.types.is_binary_view(type_):
        array = array.cast(pa.large_binary())
    try:
        return _numbers(pa.compute.binary_length(array).fill_null(0))
    except pa.ArrowNotImplementedError:  # unions and the like, which no Parquet file has
        return np.full(len(array), -(-array.nbytes // max(1, len(array))), np.int64)


def _between(offsets: pa.Array, values: pa.Array) -> Sizes:
    """(N,) bytes of each list: those of `values` between consecutive offsets."""
    bounds = _numbers(offsets)
    if (width := _width(values.type)) is not None:
        return np.diff(bounds) * width
    ends = np.concatenate(([0], value_sizes(values).cumsum()))
    return np.diff(ends[bounds])


def _width(type_: pa.DataType) -> int | None:
    """Bytes of a value of a fixed-width type; None for other types."""
    if pa.types.is_null(type_):
        return 0
    if pa.types.is_dictionary(type_) or pa.types.is_nested(type_):
        return None
    try:
        return (int(type_.bit_width) + 7) // 8
    except ValueError:
        return None


def _numbers(array: pa.Array) -> Sizes:
    return np.asarray(array.to_numpy(zero_copy_only=False), np.int64)
