"""The wire: literal bytes, msgpack-numpy's readers, and a corpus of payloads that mean harm."""

from __future__ import annotations

from typing import Any

import msgpack
import msgpack_numpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from shared import errors
from shared.contracts import (
    AnyRequest,
    DecodeRequest,
    DecodeResult,
    EmbedRequest,
    EmbedResult,
    PredictRequest,
    PredictResult,
    RerankRequest,
    RerankResult,
    Timings,
    TokenizeRequest,
    TokenizeResult,
)
from shared.wire import codec, messages
from tests.shared.wire.hostile import HOSTILE, ONE, deep, nd

LIMIT = 1_000_000


def test_an_array_is_exactly_these_bytes() -> None:
    """The spec in the module, byte by byte."""
    assert codec.pack(np.ones((1, 1), np.float32)) == ONE


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "|i1", "|u1", "<i4", "<i8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (0, 4), (2, 3, 4)])
def test_msgpack_numpy_reads_and_writes_the_same(dtype: str, shape: tuple[int, ...]) -> None:
    """Our bytes are its bytes, and each reads the other's."""
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    ours = codec.pack({"x": array})
    if array.size:  # it cannot write empty arrays: their buffers have no contents to export
        assert ours == msgpack.packb({"x": array}, default=msgpack_numpy.encode)
        theirs = msgpack.unpackb(ours, object_hook=msgpack_numpy.decode)["x"]
        assert theirs.dtype == array.dtype
        np.testing.assert_array_equal(theirs, array)
    back = codec.unpack(ours, max_bytes=LIMIT)["x"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_arrays_that_are_not_in_c_order_are_packed_in_c_order() -> None:
    """A slice and a transpose mean their values, not their memory."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (array[:, :2], array.T, array[::-1]):
        np.testing.assert_array_equal(codec.unpack(codec.pack(view), max_bytes=LIMIT), view)


@pytest.mark.parametrize(
    "value",
    [np.array([{}]), np.array(["x"]), np.zeros(2, ">f4"), np.zeros(2, "<c8"), np.float32(1), object()],
)
def test_what_the_reader_refuses_is_not_written(value: Any) -> None:
    """Objects, strings, big-endian, complex and numpy scalars: TypeError."""
    with pytest.raises(TypeError):
        codec.pack(value)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_payload_is_invalid_input(name: str) -> None:
    """Each is refused, with a message that quotes nothing of it."""
    with pytest.raises(errors.InvalidInput) as refused:
        codec.unpack(HOSTILE[name], max_bytes=LIMIT)
    assert len(str(refused.value)) < 100


def test_a_body_over_the_limit_is_not_looked_at() -> None:
    """max_bytes counts the whole body."""
    with pytest.raises(errors.InvalidInput):
        codec.unpack(ONE, max_bytes=len(ONE) - 1)
    assert codec.unpack(ONE, max_bytes=len(ONE)).shape == (1, 1)


def test_old_msgpack_numpy_without_kind_is_read() -> None:
    """Versions before 0.4.5 wrote no `kind`."""
    assert codec.unpack(nd(kind=...), max_bytes=LIMIT).tolist() == [[1.0]]


def test_levels_up_to_the_limit_are_read() -> None:
    """The depth cap refuses one level more, and no level less."""
    codec.unpack(deep(codec.MAX_DEPTH - 1, b"\x91"), max_bytes=LIMIT)
    with pytest.raises(errors.InvalidInput):
        codec.unpack(deep(codec.MAX_DEPTH, b"\x91"), max_bytes=LIMIT)


@settings(database=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    """Any bytes: a value, or InvalidInput."""
    _reads_or_refuses(data)


@settings(database=None)
@given(st.integers(0, len(ONE) - 1), st.integers(0, 255), st.binary(max_size=3))
def test_a_damaged_array_raises_nothing_else(position: int, byte: int, tail: bytes) -> None:
    """One byte of a good array changed, and bytes put behind it."""
    _reads_or_refuses(ONE[:position] + bytes([byte]) + ONE[position + 1 :] + tail)


def _reads_or_refuses(data: bytes) -> None:
    try:
        codec.unpack(data, max_bytes=LIMIT)
    except errors.InvalidInput:
        return
    with pytest.raises(errors.BackendFailed):
        messages.unpack_result(data, EmbedResult)
    assert isinstance(messages.unpack_error(data), errors.BlitzError)
    with pytest.raises(errors.InvalidInput):
        messages.unpack_request(data, EmbedRequest, max_bytes=LIMIT)


@pytest.mark.parametrize(
    "request_",
    [
        EmbedRequest("m", ("a",)),
        EmbedRequest("m", ("héllo", (1, 2, 3)), 64, False, False, "left", "query", "document"),
        RerankRequest("m", "q", ("a", "b"), True, False, "left", 7),
        PredictRequest("m", ("a", ("b", "c")), True, False, "left"),
        TokenizeRequest("m", ("a", ""), False, "query"),
        DecodeRequest("m", ((1, 2**31 - 1), (0,)), False),
    ],
)
def test_requests_come_back_equal(request_: AnyRequest) -> None:
    """Every field survives, the defaults and the others."""
    packed = messages.pack_request(request_)
    assert messages.unpack_request(packed, type(request_), max_bytes=LIMIT) == request_


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"model": "m"},
        {"model": 1, "inputs": ["a"]},
        {"model": "m", "inputs": "a"},
        {"model": "m", "inputs": [1]},
        {"model": "m", "inputs": [["a"]]},
        {"model": "m", "inputs": []},
        {"model": "m", "inputs": [""]},
        {"model": "m", "inputs": ["a"], "dimensions": 0},
        {"model": "m", "inputs": ["a"], "dimensions": "8"},
        {"model": "m", "inputs": ["a"], "truncation_side": "up"},
        {"model": "m", "inputs": ["a"], "normalize": 1},
        {"model": "m", "inputs": np.zeros(2, np.float32)},
    ],
)
def test_requests_of_another_shape_are_invalid_input(value: Any) -> None:
    """Missing fields, wrong types, values out of range."""
    with pytest.raises(errors.InvalidInput):
        messages.unpack_request(codec.pack(value), EmbedRequest, max_bytes=LIMIT)


def test_results_come_back_equal() -> None:
    """Vectors bit for bit, and everything else."""
    vectors = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    result = EmbedResult(vectors, (4, 5, 6), "m", "r", Timings(0.1, 0.2, 0.3))
    back = messages.unpack_result(messages.pack_result(result), EmbedResult)
    assert back.vectors.dtype == np.float32
    np.testing.assert_array_equal(back.vectors, vectors)
    assert (back.token_counts, back.model, back.revision) == ((4, 5, 6), "m", "r")
    assert back.timings == result.timings


def test_scores_come_back_equal() -> None:
    """A reranker's (N,) with its method, a classifier's (N, L) with its labels."""
    scores = np.array([0.5, 0.25])
    logits = np.array([0, -1], np.float32)
    rerank = RerankResult(scores, (4, 5), "m", "r", "cosine")
    predict = PredictResult(scores.reshape(1, 2), (4,), "m", "r", ("no", "yes"))
    ranked = messages.unpack_result(messages.pack_result(rerank), RerankResult)
    assert (ranked.scores.tolist(), ranked.method) == ([0.5, 0.25], "cosine")
    assert ranked.logits is None
    crossed = messages.unpack_result(messages.pack_result(replace(rerank, logits=logits)), RerankResult)
    assert crossed.logits is not None
    assert (crossed.logits.dtype.str, crossed.logits.tolist()) == ("<f4", [0, -1])
    for wrong in (logits[:1], scores):
        with pytest.raises(errors.BackendFailed):
            messages.unpack_result(messages.pack_result(replace(rerank, logits=wrong)), RerankResult)
    predicted = messages.unpack_result(messages.pack_result(predict), PredictResult)
    assert (predicted.scores.tolist(), predicted.labels) == ([[0.5, 0.25]], ("no", "yes"))
    with pytest.raises(errors.BackendFailed):
        messages.unpack_result(messages.pack_result(predict), RerankResult)


@pytest.mark.parametrize(
    "changes",
    [
        {"vectors": [[1.0]]},
        {"vectors": np.zeros((1, 2), np.float64)},
        {"vectors": np.zeros(2, np.float32)},
        {"vectors": np.zeros((2, 2), np.float32)},
        {"token_counts": [1, 2]},
        {"model": None},
        {"timings": []},
    ],
)
def test_a_result_of_another_shape_is_the_backends_fault(changes: dict[str, Any]) -> None:
    """Wrong types, and fewer or more vectors than inputs: BackendFailed."""
    value = {
        "model": "m",
        "revision": "r",
        "token_counts": [1],
        "timings": {},
        "vectors": np.zeros((1, 2), np.float32),
    }
    messages.unpack_result(codec.pack(value), EmbedResult)
    with pytest.raises(errors.BackendFailed):
        messages.unpack_result(codec.pack(value | changes), EmbedResult)


def test_spellings_come_back_equal() -> None:
    """A row and a text a token, none for an input that has none."""
    spans = np.arange(12, dtype=np.int32).reshape(3, 4)
    result = TokenizeResult(spans, ("a", "é", ""), (2, 0, 1), "m", "r")
    back = messages.unpack_result(messages.pack_result(result), TokenizeResult)
    assert back.spans.dtype == np.int32
    assert back.spans.tolist() == spans.tolist()
    assert replace(back, spans=spans) == result


@pytest.mark.parametrize(
    "changes",
    [
        {"spans": np.zeros((2, 4), np.int64)},
        {"spans": np.zeros((2, 3), np.int32)},
        {"spans": np.zeros((3, 4), np.int32)},
        {"texts": ("a",)},
        {"token_counts": (1,)},
    ],
)
def test_a_spelling_that_does_not_fit_together_is_the_backends_fault(changes: dict[str, Any]) -> None:
    """As many rows as texts as tokens, of four columns."""
    result = TokenizeResult(np.zeros((2, 4), np.int32), ("a", "b"), (1, 1), "m", "r")
    with pytest.raises(errors.BackendFailed):
        messages.unpack_result(messages.pack_result(replace(result, **changes)), TokenizeResult)


def test_texts_come_back_equal() -> None:
    """One for each count; else it is the backend's fault."""
    result = DecodeResult(("a é", ""), (3, 1), "m", "r", Timings(1, 2, 3))
    assert messages.unpack_result(messages.pack_result(result), DecodeResult) == result
    with pytest.raises(errors.BackendFailed):
        messages.unpack_result(messages.pack_result(replace(result, token_counts=(3,))), DecodeResult)


def _all_errors(base: type[errors.BlitzError] = errors.BlitzError) -> list[type[errors.BlitzError]]:
    return [base, *(kind for child in base.__subclasses__() for kind in _all_errors(child))]


@pytest.mark.parametrize("kind", _all_errors())
def test_each_error_comes_back_as_its_class(kind: type[errors.BlitzError]) -> None:
    """Class, message, field and retry_after_s survive."""
    back = messages.unpack_error(messages.pack_error(kind("why", field="input[1]", retry_after_s=2.5)))
    assert type(back) is kind
    assert (back.message, back.field, back.retry_after_s) == ("why", "input[1]", 2.5)


def test_an_error_that_cannot_be_read_is_the_backends_fault() -> None:
    """HTML of a proxy, an unknown code, a wrong shape."""
    unknown = {"code": "x", "message": "m", "field": None, "retry_after_s": None}
    for data in (
        b"<html>",
        b"",
        codec.pack(unknown),
        codec.pack([]),
        codec.pack({"code": "invalid_input"}),
    ):
        assert type(messages.unpack_error(data)) is errors.BackendFailed
