from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from shared.cards import About, ModelCard
from shared.contracts import (
    AnyRequest,
    DecodeRequest,
    EmbedRequest,
    EmbedResult,
    PredictRequest,
    PredictResult,
    RerankRequest,
    RerankResult,
    TokenizeRequest,
    TokenizeResult,
)
from shared.dialects import cohere, openai, tei
from shared.dialects.body import decode_body, read_present_fields
from shared.dialects.operations import OPERATIONS, PATHS, FormatError, Operation, choose, operations_at
from shared.errors import (
    BackendFailed,
    BlitzError,
    EmptyInput,
    InputTooLong,
    InvalidInput,
    Overloaded,
    PayloadTooLarge,
    StoreUnavailable,
    UnknownModel,
)
from shared.settings import Settings
from shared.wire import codec

VECTORS = np.array([[0.1, -2.0, 3.5], [1e-7, 0.0, -1.0]], np.float32)
RESULT = EmbedResult(VECTORS, token_counts=(3, 4), model="m", revision="r")
SCORES = RerankResult(np.array([0.25, 0.75, 0.25, 0.5]), (1, 2, 3, 4), "m", "r", "cross-encoder")
COSINES = RerankResult(SCORES.scores, SCORES.token_counts, "m", "r", "cosine")
LABELLED = PredictResult(
    np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]), (3, 4), "m", "r", ("no", "yes", "maybe")
)
TEXTS = ["a", "b", "c", "d"]


def _openai(body: dict[str, Any], **settings: Any) -> EmbedRequest:
    parsed = msgspec.convert(body, openai.EmbeddingsBody)
    return openai.request_from(parsed, model="m", settings=Settings(**settings))


def _tei(body: dict[str, Any], **settings: Any) -> EmbedRequest:
    return tei.request_from(
        msgspec.convert(body, tei.EmbedBody), model="m", settings=Settings(**settings)
    )


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
    body = json.loads(openai.format_result(RESULT, openai.EmbeddingsBody("a")))
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
    body = json.loads(
        openai.format_result(columns, openai.EmbeddingsBody("a", encoding_format="base64"))
    )
    rows = [base64.b64decode(item["embedding"]) for item in body["data"]]
    assert rows[0] == b"\x00\x00\x80\x3f\x00\x00\x00\x40"
    assert np.array_equal(np.frombuffer(rows[1], "<f4"), [3, 4])


def test_tei_answers_a_bare_matrix() -> None:
    """Two-dimensional for a single text too."""
    one = EmbedResult(VECTORS[:1], (1,), "m", "r")
    got = json.loads(tei.format_result(one, tei.EmbedBody("a")))
    assert np.array_equal(np.array(got, np.float32), VECTORS[:1])


def test_msgpack_answers_hold_the_array() -> None:
    """TEI: the array alone; OpenAI: the array as data."""
    matrix = tei.format_result_msgpack(RESULT, tei.EmbedBody("a"))
    assert np.array_equal(codec.unpack(matrix, max_bytes=len(matrix)), VECTORS)
    packed = openai.format_result_msgpack(RESULT, openai.EmbeddingsBody("a"))
    body = codec.unpack(packed, max_bytes=len(packed))
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
    ("error", "kind", "message"),
    [
        (InvalidInput("e", field="input[1]"), "invalid_request_error", "input[1]: e"),
        (EmptyInput("input is empty", field="input"), "invalid_request_error", "input is empty"),
        (Overloaded("e"), "rate_limit_error", "e"),
        (StoreUnavailable("e"), "server_error", "e"),
    ],
)
def test_openai_errors_have_four_members(error: BlitzError, kind: str, message: str) -> None:
    """message, type, param and code, as the SDKs read them; the field is in the message too."""
    status, body = openai.format_error(error)
    assert status == error.status
    expected = {"message": message, "type": kind, "param": error.field, "code": error.code}
    assert json.loads(body) == {"error": expected}


def test_models_and_info_have_their_clients_shapes() -> None:
    """What GET /v1/models and GET /info hold of a card."""
    card = ModelCard("m", "rev", "cpu-int8", "bert", "mean", 384, 256, created=12, size_bytes=7)
    about = About("a wheel", {"query": "find: "}, "query", (64,), {"cosine_mean": 0.99})
    gpu = replace(card, device="gpu", target="gpu-fp16", about=about)
    limits = Settings(max_inputs=9, max_request_tokens=300, max_requests=7)
    [model] = json.loads(openai.format_models({"alias": [card, gpu]}))["data"]
    build: dict[str, Any] = {
        "device": "cpu",
        "target": "cpu-int8",
        "revision": "rev",
        "staged": None,
        "created": 12,
        "architecture": "bert",
        "source": "",
        "size_bytes": 7,
        "max_tokens": 256,
        "dimensions": 384,
        "matryoshka_dimensions": [],
        "pooling": "mean",
        "labels": [],
        "prompts": {},
        "default_prompt": None,
        "quality": {},
    }
    told = {
        "device": "gpu",
        "target": "gpu-fp16",
        "source": "a wheel",
        "matryoshka_dimensions": [64],
        "prompts": {"query": "find: "},
        "default_prompt": "query",
        "quality": {"cosine_mean": 0.99},
    }
    assert model == {
        "id": "alias",
        "object": "model",
        "created": 12,
        "owned_by": "blitz-embedding",
        "type": "base",
        "capabilities": {"completion_chat": False},
        "root": "m",
        "task": "embedding",
        "builds": [build, {**build, **told}],
    }
    info = json.loads(tei.format_info(card, limits, "1.2.3", 250))
    assert info["model_id"] == "m"
    assert info["model_sha"] == "rev"
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert info["max_input_length"] == 250  # there is memory for no more
    assert info["max_client_batch_size"] == 9
    assert info["max_batch_tokens"] == 300
    assert info["max_concurrent_requests"] == 7
    assert info["version"] == "1.2.3"


def _asked(path: str, body: Any, **settings: Any) -> tuple[Operation, Any, AnyRequest]:
    """What the router makes of a body: the operation, the struct and the contract."""
    data = json.dumps(body).encode()
    operation = choose(operations_at(path), read_present_fields(data, ""))
    parsed = decode_body(data, "", operation.body)
    return operation, parsed, operation.request_from(parsed, model="m", settings=Settings(**settings))


def _answered(path: str, body: Any, result: Any) -> Any:
    operation, parsed, _ = _asked(path, body)
    return json.loads(operation.format_result(result, parsed))


def _packed(path: str, body: Any, result: Any) -> Any:
    operation, parsed, _ = _asked(path, body)
    data = operation.format_result_msgpack(result, parsed)
    return codec.unpack(data, max_bytes=len(data))


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/", {"inputs": ["a"]}, EmbedRequest("m", ("a",))),
        (
            "/",
            {"inputs": {"source_sentence": "s", "sentences": ["a", "b"]}, "parameters": {}},
            EmbedRequest("m", ("s", "a", "b")),
        ),
        (
            "/similarity",
            {
                "inputs": {"source_sentence": "s", "sentences": ["a"]},
                "parameters": {"truncate": False, "truncation_direction": "Left", "prompt_name": "q"},
            },
            EmbedRequest("m", ("s", "a"), None, True, False, "left", "q"),
        ),
        ("/", {"query": "q", "texts": ["a"]}, RerankRequest("m", "q", ("a",))),
        (
            "/rerank",
            {
                "query": "q",
                "texts": ["a"],
                "raw_scores": True,
                "truncate": False,
                "truncation_direction": "left",
                "documents": None,
            },
            RerankRequest("m", "q", ("a",), True, False, "left"),
        ),
        (
            "/rerank",
            {"query": "q", "texts": None, "documents": ["a", {"text": "b", "title": "t"}]},
            RerankRequest("m", "q", ("a", "b")),
        ),
        (
            "/v1/rerank",
            {"query": "q", "documents": [{"text": "a"}], "rank_fields": ["title"], "top_n": None},
            RerankRequest("m", "q", ("a",)),
        ),
        (
            "/v2/rerank",
            {"query": "q", "documents": ["a"], "max_tokens_per_doc": 64, "top_n": 9},
            RerankRequest("m", "q", ("a",), max_document_tokens=64),
        ),
        (
            "/rerank",
            {"query": "q", "documents": ["a", ""], "property": ""},
            RerankRequest("m", "q", ("a", "")),
        ),
        ("/predict", {"inputs": "a"}, PredictRequest("m", ("a",))),
        ("/predict", {"inputs": ["a"]}, PredictRequest("m", ("a",))),
        ("/predict", {"inputs": ["a", "b"]}, PredictRequest("m", (("a", "b"),))),
        (
            "/predict",
            {"inputs": [["a"], ["b", "c"]], "raw_scores": True, "truncate": False},
            PredictRequest("m", ("a", ("b", "c")), True, False),
        ),
        (
            "/predict",
            {"inputs": [["a", ""], ["", "b"]]},
            PredictRequest("m", (("a", ""), ("", "b"))),
        ),
        ("/tokenize", {"inputs": "a"}, TokenizeRequest("m", ("a",))),
        (
            "/tokenize",
            {"inputs": ["a", ""], "add_special_tokens": None, "prompt_name": None},
            TokenizeRequest("m", ("a", "")),
        ),
        (
            "/tokenize",
            {"inputs": [""], "add_special_tokens": False, "prompt_name": "q"},
            TokenizeRequest("m", ("",), False, "q"),
        ),
        ("/decode", {"ids": [1, 2]}, DecodeRequest("m", ((1, 2),))),
        ("/decode", {"ids": [[1, 2], [3]]}, DecodeRequest("m", ((1, 2), (3,)))),
        ("/decode", {"ids": [1], "skip_special_tokens": None}, DecodeRequest("m", ((1,),))),
        ("/decode", {"ids": [0], "skip_special_tokens": False}, DecodeRequest("m", ((0,),), False)),
    ],
)
def test_each_body_becomes_its_contract(path: str, body: Any, expected: AnyRequest) -> None:
    """By path, and by the body's shape where several dialects share one; nulls are as if left out."""
    assert _asked(path, body)[2] == expected


SPELLED = TokenizeResult(
    np.array([[101, 1, 0, 0], [5, 0, 0, 2], [7, 0, 3, 4]], np.int32),
    ("[CLS]", "é", "b"),
    (2, 0, 1),
    "m",
    "r",
)


def test_tokens_are_told_as_tei_does() -> None:
    """A list for each input; a special token stands nowhere."""
    assert _answered("/tokenize", {"inputs": ["é", "", "b"]}, SPELLED) == [
        [
            {"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None},
            {"id": 5, "text": "é", "special": False, "start": 0, "stop": 2},
        ],
        [],
        [{"id": 7, "text": "b", "special": False, "start": 3, "stop": 4}],
    ]
    packed = _packed("/tokenize", {"inputs": ["é", "", "b"]}, SPELLED)
    assert packed["counts"].tolist() == [2, 0, 1]
    assert packed["spans"].tolist() == SPELLED.spans.tolist()
    assert packed["texts"] == ["[CLS]", "é", "b"]


@pytest.mark.parametrize("path", PATHS)
def test_bodies_that_fit_nothing_go_to_a_paths_last_operation(path: str) -> None:
    """Broken or foreign bodies get that dialect's error; a path that several share is told apart."""
    operations = operations_at(path)
    for data in (b"", b"{", b"[1]", b"{}", b'{"texts": null}', b"\xff", b"[" * 100_000):
        assert choose(operations, read_present_fields(data, "")) is operations[-1]
    packed = codec.pack(["texts"])
    assert choose(operations, read_present_fields(packed, codec.CONTENT_TYPE)) is operations[-1]


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": {"source_sentence": "s", "sentences": ["a"]}, "texts": None},
        {"query": "q", "texts": ["a"]},
        {"documents": [], "property": "p", "other": [{}]},
        {"inputs": [[1, 2]]},
    ],
)
def test_marks_are_the_same_in_json_and_msgpack(body: Any) -> None:
    """The encoding does not change which dialect a body is taken for."""
    found = read_present_fields(json.dumps(body, indent=2).encode(), "application/json; charset=utf-8")
    assert found == read_present_fields(codec.pack(body), codec.CONTENT_TYPE)
    assert set(found) == {
        name for name, value in body.items() if value is not None and name != "query"
    } - {"other"}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/rerank", {"query": "", "texts": ["a"]}, "query"),
        ("/rerank", {"query": "q", "texts": []}, "texts"),
        ("/rerank", {"query": "q", "texts": ["", " "]}, "texts"),
        ("/rerank", {"query": "q", "texts": ["a"] * 4}, "texts"),
        ("/rerank", {"query": "q", "texts": [{"text": "a"}]}, "texts[0]"),
        ("/rerank", {"texts": ["a"]}, "query"),
        ("/", {"query": "q", "texts": [""]}, "texts"),
        ("/similarity", {"inputs": {"source_sentence": "s", "sentences": []}}, "inputs.sentences"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "s", "sentences": ["a"] * 3}},
            "inputs.sentences",
        ),
        (
            "/",
            {"inputs": {"source_sentence": "", "sentences": ["a"]}},
            "inputs.source_sentence",
        ),
        (
            "/similarity",
            {"inputs": {"source_sentence": "s", "sentences": ["a", ""]}},
            "inputs.sentences[1]",
        ),
        ("/similarity", {"inputs": {"source_sentence": "s"}}, "inputs"),
        ("/predict", {"inputs": ""}, "inputs"),
        ("/predict", {"inputs": []}, "inputs"),
        ("/predict", {"inputs": ["a", "b", "c"]}, "inputs"),
        ("/predict", {"inputs": [["a"], []]}, "inputs[1]"),
        ("/predict", {"inputs": [["a"], ["", ""]]}, "inputs[1]"),
        ("/predict", {"inputs": [["a"], [""]]}, "inputs[1]"),
        ("/predict", {"inputs": [["a"], "b"]}, "inputs[1]"),
        ("/predict", {"inputs": ["b", ["a"]]}, "inputs"),
        ("/predict", {"inputs": [["a"]] * 4}, "inputs"),
        ("/v2/rerank", {"query": "q", "documents": []}, "documents"),
        ("/v2/rerank", {"query": "q", "documents": ["", {"text": " "}]}, "documents"),
        ("/v2/rerank", {"query": "q", "documents": ["a", {"title": "t"}]}, "documents[1]"),
        ("/v1/rerank", {"query": "q", "documents": ["a"] * 4}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": 2**40}, "top_n"),
        (
            "/v2/rerank",
            {"query": "q", "documents": ["a"], "max_tokens_per_doc": 0},
            "max_tokens_per_doc",
        ),
        ("/rerank", {"query": "q"}, "documents"),
        ("/rerank", {"query": "q", "documents": ["a", 1], "property": "p"}, "documents[1]"),
        ("/rerank", {"query": "q", "documents": ["a"] * 4, "property": "p"}, "documents"),
        ("/embed", {"inputs": "a", "dimensions": 2**40}, "dimensions"),
        ("/tokenize", {"inputs": []}, "inputs"),
        ("/tokenize", {"inputs": ["a"] * 4}, "inputs"),
        ("/tokenize", {"inputs": ["a", ["b"]]}, "inputs[1]"),
        ("/tokenize", {"inputs": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ("/decode", {}, "ids"),
        ("/decode", {"ids": []}, "ids"),
        ("/decode", {"ids": [[1], []]}, "ids[1]"),
        ("/decode", {"ids": [1, [2]]}, "ids"),
        ("/decode", {"ids": [[1]] * 4}, "ids"),
        ("/decode", {"ids": 1}, "ids"),
        ("/decode", {"ids": ["a"]}, "ids[0]"),
        ("/decode", {"ids": [-1]}, "ids[0]"),
        ("/decode", {"ids": [2**31]}, "ids[0]"),
    ],
)
def test_bad_bodies_name_the_field_in_the_dialects_words(path: str, body: Any, field: str) -> None:
    """The message says what the caller wrote, never the contract's name for it."""
    with pytest.raises(InvalidInput) as caught:
        _asked(path, body, max_inputs=3)
    data = json.dumps(body).encode()
    status, answer = choose(operations_at(path), read_present_fields(data, "")).format_error(
        caught.value
    )
    told = json.loads(answer)
    message = told["error"] if "error_type" in told else told["message"]
    assert status in (400, 422)
    assert field in message
    assert "input[" not in message
    if field.startswith("texts"):
        assert "documents" not in message


@pytest.mark.parametrize(
    ("error", "format_error", "message"),
    [
        (InputTooLong("too long", field="documents[3]"), tei.format_error, "texts[3]: too long"),
        (InvalidInput("documents[3] is x", field="documents[3]"), tei.format_error, "texts[3] is x"),
        (InputTooLong("too long", field="inputs[3]"), tei.format_error, "inputs[3]: too long"),
        (PayloadTooLarge("the input have 9", field="input"), tei.format_error, "the inputs have 9"),
        (
            InputTooLong("too long", field="input[0]"),
            tei.format_similarity_error,
            "inputs.source_sentence: too long",
        ),
        (
            InputTooLong("too long", field="input[3]"),
            tei.format_similarity_error,
            "inputs.sentences[2]: too long",
        ),
        (
            PayloadTooLarge("the input have 9", field="input"),
            tei.format_similarity_error,
            "the inputs have 9",
        ),
        (
            InvalidInput("no", field="max_document_tokens"),
            cohere.format_error,
            "max_tokens_per_doc: no",
        ),
        (InputTooLong("too long", field="documents[3]"), cohere.format_error, "documents[3]: too long"),
        (UnknownModel("no such model", field="model"), cohere.format_error, "no such model"),
        (Overloaded("busy"), cohere.format_error, "busy"),
    ],
)
def test_errors_of_backends_are_told_in_the_dialects_words(
    error: BlitzError, format_error: FormatError, message: str
) -> None:
    """The model layer speaks of the contract's fields."""
    told = json.loads(format_error(error)[1])
    assert told["error"] == message


def test_cohere_errors_are_read_by_each_of_its_clients() -> None:
    """Cohere reads message, Jina detail, Weaviate error; the status is the error's own."""
    status, body = cohere.format_error(Overloaded("busy"))
    assert status == 429
    assert json.loads(body) == {"message": "busy", "detail": "busy", "error": "busy"}


def test_tei_ranks_best_first_with_nothing_added() -> None:
    """Equal scores stay in the order of the texts; text comes only if asked for, the method never."""
    body = {"query": "q", "texts": TEXTS}
    expected = [(1, 0.75), (3, 0.5), (0, 0.25), (2, 0.25)]
    ranks = [{"index": index, "score": score} for index, score in expected]
    assert _answered("/rerank", body, COSINES) == ranks
    for rank in ranks:
        rank["text"] = TEXTS[int(rank["index"])]  # type: ignore[assignment]
    assert _answered("/", body | {"return_text": True}, SCORES) == ranks


def test_similarity_is_the_cosine_with_the_source() -> None:
    """One number for each of the other sentences, in order."""
    unit = np.array([[1, 0], [0.6, 0.8], [-1, 0]], np.float32)
    result = EmbedResult(unit, (1, 1, 1), "m", "r")
    body = {"inputs": {"source_sentence": "s", "sentences": ["a", "b"]}}
    for path in ("/similarity", "/"):
        assert np.array_equal(np.array(_answered(path, body, result), np.float32), unit[1:, 0])
        assert np.array_equal(_packed(path, body, result), unit[1:, 0])


@pytest.mark.parametrize("inputs", ["a", ["a"], ["a", "b"], [["a"]], [["a"], ["b", "c"]]])
def test_predictions_nest_as_the_inputs_do(inputs: Any) -> None:
    """A list of labels, likeliest first, for one text or pair; a list of such lists for a batch."""
    batch = isinstance(inputs, list) and isinstance(inputs[0], list)
    count = len(inputs) if batch else 1
    result = PredictResult(LABELLED.scores[:count], (1,) * count, "m", "r", LABELLED.labels)
    answer = _answered("/predict", {"inputs": inputs}, result)
    lists = answer if batch else [answer]
    assert len(lists) == count
    expected = [
        [("yes", 0.7), ("no", 0.2), ("maybe", 0.1)],
        [("no", 0.5), ("yes", 0.25), ("maybe", 0.25)],
    ]
    for labels, wanted in zip(lists, expected, strict=False):
        assert [(each["label"], each["score"]) for each in labels] == wanted
        assert all(set(each) == {"label", "score"} for each in labels)


@pytest.mark.parametrize(("top_n", "kept"), [(None, 4), (1, 1), (4, 4), (9, 4)])
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_cohere_results_are_the_best_top_n(path: str, top_n: int | None, kept: int) -> None:
    """More than there are documents is all of them."""
    answer = _answered(path, {"query": "q", "documents": TEXTS, "top_n": top_n}, SCORES)
    expected = [(1, 0.75), (3, 0.5), (0, 0.25), (2, 0.25)][:kept]
    results = [{"index": index, "relevance_score": score} for index, score in expected]
    assert answer["results"] == results
    assert answer["id"]
    assert answer["meta"]["tokens"] == {"input_tokens": 10}


@pytest.mark.parametrize(
    ("path", "members", "version"),
    [
        ("/v1/rerank", {"id", "results", "meta", "model", "usage"}, "1"),
        ("/rerank", {"id", "results", "meta", "model", "usage"}, "1"),
        ("/v2/rerank", {"id", "results", "meta"}, "2"),
    ],
)
def test_cohere_answers_have_their_versions_members(path: str, members: set[str], version: str) -> None:
    """v1 is what clients of Cohere v1 and of Jina read; documents come back if asked for."""
    documents = ["a", {"text": "b", "title": "t"}, "c", "d"]
    body = {"query": "q", "documents": documents, "return_documents": True, "top_n": 2}
    answer = _answered(path, body, SCORES)
    assert set(answer) == members
    assert answer["meta"]["api_version"] == {"version": version}
    if version == "1":
        assert answer["usage"] == {"total_tokens": 10}
    assert [each["document"] for each in answer["results"]] == [{"text": "b"}, {"text": "d"}]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_cohere_says_when_scores_are_cosines(path: str) -> None:
    """A warning where Cohere's clients look for one; none for a cross-encoder."""
    body = {"query": "q", "documents": TEXTS}
    assert "cosine" in _answered(path, body, COSINES)["meta"]["warnings"][0]
    assert "warnings" not in _answered(path, body, SCORES)["meta"]


@pytest.mark.parametrize(("top_n", "kept"), [(None, 4), (1, 1), (4, 4), (9, 4)])
def test_tei_ranks_are_the_best_top_n(top_n: int | None, kept: int) -> None:
    """litellm sends it to a TEI, and leaves it to the server."""
    body = {"query": "q", "texts": TEXTS, "top_n": top_n, "return_text": True}
    assert [each["index"] for each in _answered("/rerank", body, SCORES)] == [1, 3, 0, 2][:kept]
    columns = _packed("/rerank", body, SCORES)
    assert columns["index"].tolist() == [1, 3, 0, 2][:kept]
    assert columns["score"].shape == (kept,)
    assert columns["text"] == ["b", "d", "a", "c"][:kept]


def test_weaviate_gets_scores_by_position() -> None:
    """In the order of its documents, which it sent, empty ones too."""
    body = {"query": "q", "documents": ["a", "", "c", "d"], "property": ""}
    scores = [
        {"document": d, "score": s} for d, s in zip(["a", "", "c", "d"], SCORES.scores, strict=True)
    ]
    assert _answered("/rerank", body, SCORES) == {"scores": scores}


def test_msgpack_scores_are_columns() -> None:
    """Arrays where JSON has a list of objects, in the same order."""
    order, scores = [1, 3, 0, 2], np.array([0.75, 0.5, 0.25, 0.25])
    tei_ranks = _packed("/rerank", {"query": "q", "texts": TEXTS, "return_text": True}, SCORES)
    assert tei_ranks["index"].tolist() == order
    assert np.array_equal(tei_ranks["score"], scores)
    assert tei_ranks["text"] == ["b", "d", "a", "c"]
    for path in ("/v1/rerank", "/v2/rerank"):
        body = {"query": "q", "documents": TEXTS, "top_n": 2, "return_documents": True}
        results = _packed(path, body, SCORES)["results"]
        assert results["index"].tolist() == order[:2]
        assert np.array_equal(results["relevance_score"], scores[:2])
        assert results["text"] == ["b", "d"]
    weaviate = _packed("/rerank", {"query": "q", "documents": TEXTS, "property": "p"}, SCORES)
    assert np.array_equal(weaviate["scores"], SCORES.scores)
    predictions = _packed("/predict", {"inputs": [["a"], ["b"]]}, LABELLED)
    assert np.array_equal(predictions["scores"], LABELLED.scores)
    assert predictions["labels"] == ["no", "yes", "maybe"]


@pytest.mark.parametrize(
    ("labels", "kind"), [(("relevant",), "reranker"), (("no", "yes"), "classifier")]
)
def test_info_of_a_cross_encoder_has_its_labels(labels: tuple[str, ...], kind: str) -> None:
    """One label makes a reranker, several a classifier, as TEI tells them apart."""
    card = ModelCard(
        "m", "rev", "cpu-int8", "bert", None, len(labels), 512, task="cross-encoder", labels=labels
    )
    info = json.loads(tei.format_info(card, Settings(), "1.2.3", 512))
    id2label = {str(index): label for index, label in enumerate(labels)}
    label2id = {label: index for index, label in enumerate(labels)}
    assert info["model_type"] == {kind: {"id2label": id2label, "label2id": label2id}}


def test_every_body_can_name_its_model() -> None:
    """The router reads `model` from any of them."""
    for operation in OPERATIONS:
        assert "model" in operation.body.__struct_fields__
