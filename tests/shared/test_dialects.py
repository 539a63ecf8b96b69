from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import numpy as np
import pytest

from shared import wire
from shared.contracts import EmbedRequest, EmbedResult, ModelCard
from shared.dialects import openai, tei
from shared.errors import (
    BackendFailed,
    BlitzError,
    EmptyInput,
    InputTooLong,
    InvalidInput,
    Overloaded,
    StoreUnavailable,
    UnknownModel,
)
from shared.settings import Settings

VECTORS = np.array([[0.1, -2.0, 3.5], [1e-7, 0.0, -1.0]], np.float32)
RESULT = EmbedResult(VECTORS, token_counts=(3, 4), model="m", revision="r")


def _openai(body: dict[str, Any], **settings: Any) -> EmbedRequest:
    parsed = msgspec.convert(body, openai.Body)
    return openai.request_from(parsed, model="m", settings=Settings(**settings))


def _tei(body: dict[str, Any], **settings: Any) -> EmbedRequest:
    return tei.request_from(msgspec.convert(body, tei.Body), model="m", settings=Settings(**settings))


def test_openai_fields_reach_the_contract() -> None:
    """Texts keep their order; extensions and dimensions are passed on; extras are ignored."""
    request = _openai(
        {
            "input": ["a", "b"],
            "model": "x",
            "dimensions": 2,
            "truncate": False,
            "prompt_name": "q",
            "z": 1,
        }
    )
    assert request == EmbedRequest("m", ("a", "b"), dimensions=2, truncate=False, prompt_name="q")


def test_explicit_nulls_mean_the_defaults() -> None:
    """Clients send null for what their caller left out."""
    nulls = dict.fromkeys(("model", "encoding_format", "dimensions", "user", "truncate", "prompt_name"))
    assert _openai({"input": "a", **nulls}) == EmbedRequest("m", ("a",))
    nulls = dict.fromkeys(("truncate", "truncation_direction", "prompt_name", "normalize", "dimensions"))
    assert _tei({"inputs": "a", **nulls}) == EmbedRequest("m", ("a",))


def test_tei_fields_reach_the_contract() -> None:
    """Every option of /embed has its place in the contract."""
    request = _tei(
        {
            "inputs": ["a"],
            "truncate": False,
            "truncation_direction": "Left",
            "prompt_name": "query",
            "normalize": False,
            "dimensions": 8,
        }
    )
    assert request == EmbedRequest("m", ("a",), 8, False, False, "left", "query")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("ab", ("ab",)), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3))), (["a", [1]], ("a", (1,)))],
)
def test_each_shape_of_input_is_read(value: Any, expected: Any) -> None:
    """A text, one list of ids, lists of ids, and texts beside ids."""
    assert _tei({"inputs": value}).inputs == expected
    assert _openai({"input": value}, allow_token_ids=True).inputs == expected


@pytest.mark.parametrize("value", [[1, 2], [[1], [2]]])
def test_openai_ids_are_refused_until_allowed(value: Any) -> None:
    """Ids of a foreign vocabulary would give wrong vectors; the message says what to set."""
    with pytest.raises(InvalidInput, match="check_embedding_ctx_length=False") as caught:
        _openai({"input": value})
    assert caught.value.field == "input"


@pytest.mark.parametrize(
    ("value", "place"), [("", ""), ([], ""), (["a", ""], "[1]"), ([[1], []], "[1]")]
)
def test_empty_inputs_are_named(value: Any, place: str) -> None:
    """The field, with the index where there is one, in each dialect's own name."""
    with pytest.raises(EmptyInput) as caught:
        _openai({"input": value}, allow_token_ids=True)
    assert caught.value.field == f"input{place}"
    with pytest.raises(EmptyInput) as caught:
        _tei({"inputs": value})
    assert caught.value.field == f"inputs{place}"


def test_ids_and_texts_do_not_mix_in_one_list() -> None:
    """[1, "a"] is neither one input of ids nor two inputs."""
    with pytest.raises(InvalidInput) as caught:
        _tei({"inputs": ["a", 1]})
    assert caught.value.field == "inputs[1]"


def test_too_many_inputs_are_refused() -> None:
    """max_inputs itself passes, one more does not."""
    assert len(_openai({"input": ["a"] * 3}, max_inputs=3).inputs) == 3
    with pytest.raises(InvalidInput, match="at most 3") as caught:
        _openai({"input": ["a"] * 4}, max_inputs=3)
    assert caught.value.field == "input"


def test_openai_floats_round_trip_exactly() -> None:
    """The JSON numbers are the shortest that give the same float32."""
    body = json.loads(openai.format_result(RESULT, openai.Body("a")))
    assert body["object"] == "list"
    assert body["model"] == "m"
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert [item["index"] for item in body["data"]] == [0, 1]
    assert {item["object"] for item in body["data"]} == {"embedding"}
    got = np.array([item["embedding"] for item in body["data"]], np.float32)
    assert np.array_equal(got, VECTORS)


def test_openai_base64_is_little_endian_float32() -> None:
    """1.0 is 00 00 80 3f, whatever the memory layout of the result."""
    columns = EmbedResult(np.asfortranarray(np.array([[1, 2], [3, 4]], np.float32)), (1, 1), "m", "r")
    body = json.loads(openai.format_result(columns, openai.Body("a", encoding_format="base64")))
    rows = [base64.b64decode(item["embedding"]) for item in body["data"]]
    assert rows[0] == b"\x00\x00\x80\x3f\x00\x00\x00\x40"
    assert np.array_equal(np.frombuffer(rows[1], "<f4"), [3, 4])


def test_tei_answers_a_bare_matrix() -> None:
    """Two-dimensional for a single text too."""
    one = EmbedResult(VECTORS[:1], (1,), "m", "r")
    got = json.loads(tei.format_result(one, tei.Body("a")))
    assert np.array_equal(np.array(got, np.float32), VECTORS[:1])


def test_msgpack_answers_hold_the_array() -> None:
    """TEI: the array alone; OpenAI: the array as data."""
    matrix = tei.format_result_msgpack(RESULT)
    assert np.array_equal(wire.unpack(matrix, max_bytes=len(matrix)), VECTORS)
    packed = openai.format_result_msgpack(RESULT)
    body = wire.unpack(packed, max_bytes=len(packed))
    assert np.array_equal(body["data"], VECTORS)
    assert body["model"] == "m"
    assert body["usage"]["total_tokens"] == 7


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (EmptyInput("e", field="inputs[2]"), 400, "Empty"),
        (InvalidInput("e"), 422, "Validation"),
        (InputTooLong("e"), 422, "Validation"),
        (UnknownModel("e"), 404, "Validation"),
        (Overloaded("e"), 429, "Overloaded"),
        (StoreUnavailable("e"), 503, "Unhealthy"),
        (BackendFailed("e"), 424, "Backend"),
        (BlitzError("e"), 500, "Backend"),
    ],
)
def test_tei_errors_have_teis_statuses(error: BlitzError, status: int, kind: str) -> None:
    """Clients of TEI retry and report by these."""
    got, body = tei.format_error(error)
    assert got == status
    assert json.loads(body)["error_type"] == kind


def test_tei_errors_name_the_field_in_its_own_words() -> None:
    """The model layer's input[3] is this dialect's inputs[3]; a field already named is not repeated."""
    _, body = tei.format_error(InputTooLong("too long", field="input[3]"))
    assert json.loads(body)["error"] == "inputs[3]: too long"
    _, body = tei.format_error(EmptyInput("inputs[3] is empty", field="inputs[3]"))
    assert json.loads(body)["error"] == "inputs[3] is empty"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidInput("e", field="input[1]"), "invalid_request_error"),
        (Overloaded("e"), "rate_limit_error"),
        (StoreUnavailable("e"), "server_error"),
    ],
)
def test_openai_errors_have_four_members(error: BlitzError, kind: str) -> None:
    """message, type, param and code, as the SDKs read them."""
    status, body = openai.format_error(error)
    assert status == error.status
    expected = {"message": "e", "type": kind, "param": error.field, "code": error.code}
    assert json.loads(body) == {"error": expected}


def test_models_and_info_have_their_clients_shapes() -> None:
    """What GET /v1/models and GET /info hold of a card."""
    card = ModelCard("m", "rev", "cpu-int8", "bert", "mean", 384, 256, created=12)
    [model] = json.loads(openai.format_models([card]))["data"]
    assert model == {"id": "m", "object": "model", "created": 12, "owned_by": "blitz-embedding"}
    info = json.loads(tei.format_info(card, Settings(max_inputs=9), "1.2.3"))
    assert info["model_id"] == "m"
    assert info["model_sha"] == "rev"
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert info["max_input_length"] == 256
    assert info["max_client_batch_size"] == 9
    assert info["version"] == "1.2.3"
