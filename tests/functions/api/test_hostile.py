"""Bodies and headers that mean harm, called as ASGI: each gets a 4xx, and nothing else happens."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as fuzz
from hypothesis import strategies as st
from starlette.types import ASGIApp

from shared.dialects.operations import OPERATIONS, PATHS, Operation
from shared.wire import codec
from tests.apps import JSON, WIRE_BODIES, ask, wire_backend, wire_router
from tests.functions.api.bodies import VALID, valid_body
from tests.shared.wire.hostile import HOSTILE

PAIRS = [
    pytest.param(path, each, id=f"{path} {each.summary}") for each in OPERATIONS for path in each.paths
]
ROUTES = [path.replace("{model}", "m") for path in PATHS]


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "operation"), PAIRS)
async def test_the_bodies_that_are_spoilt_below_are_good(path: str, operation: Operation) -> None:
    """Both as JSON and as msgpack: what is refused later is refused for what was changed."""
    body, app = valid_body(operation), wire_router()
    path = path.replace("{model}", "m")
    assert (await ask(app, path, json.dumps(body).encode()))[0] == 200
    assert (await ask(app, path, codec.pack(body), content_type=codec.CONTENT_TYPE))[0] == 200


# --- msgpack ------------------------------------------------------------------------------------------

ENVELOPES = {
    "alone": b"%s",
    "as a text": b"\x82\xa5model\xa1m\xa6inputs%s",
    "in a list of texts": b"\x84\xa5model\xa1m\xa5query\xa1q\xa9documents\x91%s\xa6inputs\x91%s",
    "in an unknown field": b"\x85\xa5model\xa1m\xa5input\xa1a\xa6inputs\xa1a\xa5query\xa1q\xa1x%s",
}


@pytest.mark.anyio
@pytest.mark.parametrize("envelope", ENVELOPES.values(), ids=ENVELOPES)
@pytest.mark.parametrize(
    ("app", "paths"),
    [(wire_router(), ROUTES), (wire_backend(), list(WIRE_BODIES))],
    ids=["router", "backend"],
)
async def test_hostile_msgpack_is_refused(app: ASGIApp, paths: list[str], envelope: bytes) -> None:
    """The codec's corpus, alone and in otherwise good bodies: 4xx, and nothing is made room for."""
    tracemalloc.start()
    try:
        for name, payload in HOSTILE.items():
            body = envelope.replace(b"%s", payload)
            for path in paths:
                status, answer = await ask(app, path, body, content_type=codec.CONTENT_TYPE)
                assert 400 <= status < 500, (name, path, answer)
                assert len(answer) < 1000, name
        assert tracemalloc.get_traced_memory()[1] < 64_000_000
    finally:
        tracemalloc.stop()


ODD: list[Any] = [
    *(None, True, 0, -1, 1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 0.5, 1e300),
    *(math.nan, math.inf, -math.inf, "", "\0", "a", b"", b"\xff", [], [[]], [[[]]], {}, {"a": 1}),
    *([None], [1], [-1], [2**31], ["a", 1], ["", "a"], [["a"], "a"], [["a", "b", "c"]], [{}], [b"a"]),
    *([{"text": ""}], [{"text": 1}], {"sentences": []}, {"source_sentence": "", "sentences": [""]}),
    *(np.zeros((2, 2), np.float32), np.zeros(0, np.int64), [np.zeros(1, np.int8)], "a" * 300_000),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "operation"), PAIRS)
async def test_no_value_of_any_field_breaks_the_router(path: str, operation: Operation) -> None:
    """Each field of each body holds everything that it should not: an answer or a 4xx."""
    app, path = wire_router(), path.replace("{model}", "m")
    for field in msgspec.structs.fields(operation.body):
        for value in ODD:
            body = codec.pack({**valid_body(operation), field.encode_name: value})
            status, answer = await ask(app, path, body, content_type=codec.CONTENT_TYPE)
            assert status < 500, (field.name, value, answer)


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "good"), WIRE_BODIES.items(), ids=WIRE_BODIES)
async def test_no_value_of_any_field_breaks_a_backend(path: str, good: bytes) -> None:
    """The same for the wire's own requests, where no dialect stands before."""
    app = wire_backend()
    body = codec.unpack(good, max_bytes=len(good))
    for field in body:
        for value in ODD:
            spoilt = codec.pack({**body, field: value})
            status, answer = await ask(app, path, spoilt, content_type=codec.CONTENT_TYPE)
            assert status < 500, (field, value, answer)


# --- JSON ---------------------------------------------------------------------------------------------

SPOILT_JSON = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "deep lists": b'{"x":' + b"[" * 200_000,
    "deep closed lists": b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep maps": b'{"x":' * 200_000,
    "deep inputs": b'{"model":"m","input":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "number beyond 64 bits": b'{"input":"a","model":"m","dimensions":' + b"9" * 400 + b"}",
    "number beyond int()": b'{"input":"a","model":"m","dimensions":' + b"9" * 10_000 + b"}",
    "number beyond floats": b'{"input":"a","model":"m","dimensions":1e999}',
    "NaN": b'{"input":"a","model":"m","dimensions":NaN}',
    "half a surrogate": b'{"input":"a","model":"\\ud800"}',
    "surrogates in the wrong order": b'{"input":"\\udc00\\ud800","model":"m"}',
    "bytes that are not UTF-8": b'{"input":"\xff\xfe","model":"m"}',
    "UTF-16": '{"input":"a","model":"m"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + b'{"input":1}',
    "two values": b'{"input":"a","model":"m"}{}',
    "truncated": b'{"input":"a","model":"m',
    "NUL": b"\x00",
    "msgpack": codec.pack({"input": "a", "model": "m"}),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", SPOILT_JSON)
async def test_spoilt_json_is_refused(name: str) -> None:
    """On every path: 4xx, quoting nothing long."""
    app = wire_router()
    for path in ROUTES:
        status, answer = await ask(app, path, SPOILT_JSON[name])
        assert 400 <= status < 500, (path, answer)
        assert len(answer) < 1000


@pytest.mark.anyio
async def test_a_field_given_twice_is_one_request() -> None:
    """The last one counts, for the check and for the model alike."""
    app = wire_router()
    status, _ = await ask(app, "/v1/embeddings", b'{"model":"m","input":[],"input":"a"}')
    assert status == 200
    status, _ = await ask(app, "/v1/embeddings", b'{"model":"m","input":"a","input":[]}')
    assert status == 400


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (((b"content-length", b"9" * 5_000),), 413),
        (((b"content-length", b"-1"),), 200),
        (((b"content-length", b"\xb2"),), 200),
        (((b"x-blitz-timeout-ms", b"9" * 5_000),), 200),
        (((b"x-blitz-timeout-ms", b"nan"),), 200),
        (((b"accept", b"," * 60_000),), 200),
        (((b"accept", b"\xff\x00"),), 200),
        (((b"content-type", b"\xff\x00"),), 200),
        (tuple((b"x-%d" % n, b"y" * 100) for n in range(1_000)), 200),
    ],
    ids=lambda value: "" if isinstance(value, int) else repr(value)[:40],
)
async def test_odd_headers_break_nothing(headers: tuple[tuple[bytes, bytes], ...], status: int) -> None:
    """Servers refuse most of these before us; a platform's adapter might not."""
    body = json.dumps({"input": "a", "model": "m"}).encode()
    assert (await ask(wire_router(), "/v1/embeddings", body, headers=headers))[0] == status


@pytest.mark.anyio
async def test_many_query_parameters_break_nothing() -> None:
    """Only the ones that are known are read, and those that are not UTF-8 are no model."""
    app, body = wire_router(), json.dumps({"input": "a"}).encode()
    for query in (b"a=1&" * 20_000, b"&" * 60_000, b"%" * 60_000, b"=" * 60_000):
        assert (await ask(app, "/v1/embeddings", body, query=query))[0] == 200
    for query in (b"model=%ff%00", b"model=\xff", b"model=" + b"m" * 60_000):
        assert (await ask(app, "/info", method="GET", query=query))[0] == 404


# --- limits -------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "operation"), PAIRS)
async def test_limits_hold_on_every_path(path: str, operation: Operation) -> None:
    """One input or one byte more than may be sent is a 4xx; just as many are answered."""
    path = path.replace("{model}", "m")
    body = valid_body(operation)
    lists = ("documents", "texts", "input", "inputs", "values")
    most: Any
    field, most = next(((name, value) for name, value in body.items() if name in lists), ("", None))
    if not field:  # one text is all that it takes
        many = {3: body, 4: {**body, "prompt": ["a"] * 4}}
    elif isinstance(most, dict):  # the source sentence is an input too
        many = {count: {**body, field: {**most, "sentences": ["b"] * (count - 1)}} for count in (3, 4)}
    elif operation.task == "cross-encoder" and field == "inputs":
        many = {count: {**body, field: [["b"]] * count} for count in (3, 4)}
    elif field == "values":
        many = {count: {**body, field: most * count} for count in (3, 4)}
    else:
        many = {count: {**body, field: ["b"] * count} for count in (3, 4)}
    app = wire_router(max_inputs=3)
    assert (await ask(app, path, json.dumps(many[3]).encode()))[0] == 200
    assert (await ask(app, path, json.dumps(many[4]).encode()))[0] in (400, 413, 422)
    data = json.dumps(body).encode()
    assert (await ask(wire_router(max_body_bytes=len(data)), path, data))[0] == 200
    assert (await ask(wire_router(max_body_bytes=len(data) - 1), path, data))[0] == 413


# --- fuzz ---------------------------------------------------------------------------------------------

ROUTER = wire_router()
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted({f.encode_name for each in OPERATIONS for f in msgspec.structs.fields(each.body)})
BODIES = st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=6)
GOOD = [{**body, "model": "m"} for body in VALID]
ALMOST = st.builds(lambda good, odd: {**good, **odd}, st.sampled_from(GOOD), BODIES)
fuzzing = fuzz(
    max_examples=60,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ROUTES)
@fuzzing
@given(body=st.binary(max_size=200), content_type=st.sampled_from([JSON, codec.CONTENT_TYPE, "", "x"]))
async def test_random_bytes_are_no_server_error(path: str, body: bytes, content_type: str) -> None:
    """Whatever comes, and whatever it is called."""
    status, answer = await ask(ROUTER, path, body, content_type=content_type)
    assert status < 500, answer


@pytest.mark.anyio
@pytest.mark.parametrize("path", ROUTES)
@fuzzing
@given(body=JSON_VALUES | BODIES | ALMOST)
async def test_random_values_are_no_server_error(path: str, body: Any) -> None:
    """Random values in the fields that there are, as JSON and, where it can say them, as msgpack."""
    status, answer = await ask(ROUTER, path, json.dumps(body).encode())
    assert status < 500, answer
    try:
        packed = msgpack.packb(body)
    except OverflowError:  # an integer of more than 64 bits
        return
    status, answer = await ask(ROUTER, path, packed, content_type=codec.CONTENT_TYPE)
    assert status < 500, answer
