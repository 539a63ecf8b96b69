from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import numpy as np
import pytest

from shared.contracts import EmbedRequest, EmbedResult
from shared.dialects import cohere, cohere_embed
from shared.errors import EmptyInput, InputTooLong, InvalidInput, PayloadTooLarge
from shared.settings import Settings
from shared.wire import codec

VECTORS = np.array(
    [[0.6, -0.8, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0, 0, 0, 0]],
    np.float32,
)
RESULT = EmbedResult(VECTORS, (2, 3, 4), "m", "r")


def read(**fields: Any) -> cohere_embed.TextsBody:
    return msgspec.convert({"texts": ["a", "b", "c"], **fields}, cohere_embed.TextsBody)


def request_of(**fields: Any) -> EmbedRequest:
    return cohere_embed.request_from(read(**fields), model="m", settings=Settings(max_inputs=3))


def embeddings_of(*kinds: str) -> dict[str, Any]:
    body = read(embedding_types=list(kinds))
    embeddings = json.loads(cohere_embed.format_result(RESULT, body))["embeddings"]
    assert isinstance(embeddings, dict)
    return embeddings


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, EmbedRequest("m", ("a", "b", "c"))),
        (dict.fromkeys(("input_type", "truncate", "images", "inputs", "max_tokens")), request_of()),
        ({"texts": ["a"], "images": [], "inputs": []}, EmbedRequest("m", ("a",))),
        ({"output_dimension": 2}, EmbedRequest("m", ("a", "b", "c"), dimensions=2)),
        ({"truncate": "NONE"}, EmbedRequest("m", ("a", "b", "c"), truncate=False)),
        ({"truncate": "END"}, EmbedRequest("m", ("a", "b", "c"))),
        ({"truncate": "START"}, EmbedRequest("m", ("a", "b", "c"), truncation_side="left")),
        ({"input_type": "search_query"}, EmbedRequest("m", ("a", "b", "c"), input_type="query")),
        ({"input_type": "search_document"}, EmbedRequest("m", ("a", "b", "c"), input_type="document")),
        ({"input_type": "clustering"}, EmbedRequest("m", ("a", "b", "c"), input_type="clustering")),
    ],
)
def test_fields_reach_the_contract(fields: dict[str, Any], expected: EmbedRequest) -> None:
    """Each has its place; null and empty mean that the caller left it out."""
    assert request_of(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"texts": None}, "texts"),
        ({"texts": []}, "texts"),
        ({"texts": ["a"] * 4}, "texts"),
        ({"texts": None, "images": ["data:image/png;base64,AA"]}, "images"),
        ({"texts": None, "inputs": [{"content": [{"type": "text", "text": "a"}]}]}, "inputs"),
        ({"max_tokens": 128}, "max_tokens"),
    ],
)
def test_what_is_not_embedded_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    """Better than vectors of something else than what was asked for."""
    with pytest.raises(InvalidInput) as caught:
        request_of(**fields)
    assert caught.value.field == field


def test_an_answer_has_cohere_s_members() -> None:
    """Floats if no type is named, the texts again, and the tokens where clients look for them."""
    answer = json.loads(cohere_embed.format_result(RESULT, read()))
    assert set(answer) == {"id", "response_type", "embeddings", "texts", "meta"}
    assert answer["response_type"] == "embeddings_by_type"
    assert answer["texts"] == ["a", "b", "c"]
    assert answer["meta"]["billed_units"] == answer["meta"]["tokens"] == {"input_tokens": 9}
    assert list(answer["embeddings"]) == ["float"]
    assert np.array_equal(np.array(answer["embeddings"]["float"], np.float32), VECTORS)


def test_several_types_come_at_once() -> None:
    """One list for each that was named, once each."""
    assert list(embeddings_of("int8", "float", "int8")) == ["int8", "float"]


def test_bytes_are_the_floats_times_127() -> None:
    """Unsigned they are moved by 128, so that a zero is 128; nothing wraps around at the ends."""
    embeddings = embeddings_of("int8", "uint8")
    assert embeddings["int8"] == [
        [76, -102, 0, 0, 0, 0, 0, 0, 0],
        [127, 0, 0, 0, 0, 0, 0, 0, 0],
        [-127, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert embeddings["uint8"] == [[value + 128 for value in row] for row in embeddings["int8"]]


def test_a_unit_vector_that_rounding_made_longer_does_not_wrap_around() -> None:
    """The largest float32 error of a norm is far from the half step that would reach 128."""
    vectors = np.array([[1.000001, -1.000001]], np.float32)
    data = cohere_embed.format_result(
        EmbedResult(vectors, (1,), "m", "r"), read(embedding_types=["int8"])
    )
    assert json.loads(data)["embeddings"]["int8"] == [[127, -127]]


def test_bits_are_signs_packed_from_the_highest() -> None:
    """Zero counts as negative; the ninth dimension begins a byte of its own."""
    vectors = np.array([[1, -1, 1, 0, 0, 0, 0, 1, 1], [-1] * 9], np.float32)
    body = read(embedding_types=["binary", "ubinary"])
    data = cohere_embed.format_result(EmbedResult(vectors, (1, 1), "m", "r"), body)
    embeddings = json.loads(data)["embeddings"]
    assert embeddings["ubinary"] == [[0b10100001, 0b10000000], [0, 0]]
    assert embeddings["binary"] == [[0b10100001 - 128, 0], [-128, -128]]


def test_base64_is_little_endian_float32() -> None:
    """As OpenAI's."""
    (first, *_) = embeddings_of("base64")["base64"]
    assert base64.b64decode(first) == VECTORS[0].astype("<f4").tobytes()


def test_msgpack_holds_arrays() -> None:
    """With the dtype that each type has."""
    body = read(embedding_types=["float", "int8", "ubinary"])
    data = cohere_embed.format_result_msgpack(RESULT, body)
    embeddings = codec.unpack(data, max_bytes=len(data))["embeddings"]
    assert [(each.dtype.name, each.shape) for each in embeddings.values()] == [
        ("float32", (3, 9)),
        ("int8", (3, 9)),
        ("uint8", (3, 2)),
    ]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (EmptyInput("an input is empty: give a text", field="input[1]"), "texts[1]: an input is empty"),
        (InputTooLong("input[2] has 9 tokens", field="input[2]"), "texts[2] has 9 tokens"),
        (PayloadTooLarge("the input have 9 tokens", field="input"), "the texts have 9 tokens"),
        (InvalidInput("ask for 1 to 8", field="dimensions"), "output_dimension: ask for 1 to 8"),
    ],
)
def test_errors_of_backends_name_cohere_s_fields(error: InvalidInput, message: str) -> None:
    """A backend speaks of inputs and dimensions, which nobody sent here."""
    _, content = cohere.format_error(error)
    assert json.loads(content)["message"].startswith(message)
