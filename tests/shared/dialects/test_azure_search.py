from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from shared import errors
from shared.contracts import EmbedRequest, EmbedResult
from shared.dialects import azure_search
from shared.dialects.azure_search import Record, RecordsBody
from shared.dialects.body import fill_from_query
from shared.dialects.operations import operations_at
from shared.errors import BlitzError, InvalidInput
from shared.settings import Settings
from shared.wire import codec

(OPERATION,) = operations_at("/azure-search")
SECRET = "the document's private text"


def read(*data: Any, query: dict[str, str] | None = None) -> RecordsBody:
    """A body with a record for each of `data`, and what the query string says."""
    values = [{"recordId": f"r{n}", "data": each} for n, each in enumerate(data)]
    body = msgspec.convert({"values": values}, RecordsBody)
    return fill_from_query(body, query or {}, OPERATION.query)


def request_of(body: RecordsBody, **settings: Any) -> EmbedRequest:
    return azure_search.request_from(body, model="m", settings=Settings(**settings))


def answer_of(body: RecordsBody) -> list[Any]:
    """The records for the vectors [0, 1], [2, 3] ..."""
    vectors = np.arange(2 * len(body.values), dtype=np.float32).reshape(-1, 2)
    result = EmbedResult(vectors, (1,) * len(vectors), "m", "r")
    values = json.loads(azure_search.format_result(result, body))["values"]
    assert isinstance(values, list)
    return values


def test_records_are_answered_each_by_its_id() -> None:
    """In the shape that skills and vectorizers read: errors and warnings are there, and null."""
    body = read({"text": "a"}, {"text": "b", "language": "en"})
    assert request_of(body) == EmbedRequest("m", ("a", "b"))
    assert answer_of(body) == [
        {"recordId": "r0", "data": {"vector": [0, 1]}, "errors": None, "warnings": None},
        {"recordId": "r1", "data": {"vector": [2, 3]}, "errors": None, "warnings": None},
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"text": ""}, "data.text is empty"),
        ({"text": None}, "data.text is missing"),
        ({"content": SECRET}, "data.text is missing"),
        ({}, "data.text is missing"),
        (None, "data.text is missing"),
        ({"text": [SECRET]}, "data.text is a list: give the skill a context"),
        ({"text": 7}, "data.text is not a text: send a string"),
        ({"text": {"of": SECRET}}, "data.text is not a text: send a string"),
        (SECRET, "data is not an object: send one with the text as data.text"),
        ([{"text": SECRET}], "data is not an object"),
        (False, "data is not an object"),
    ],
)
def test_a_bad_record_fails_alone(bad: Any, message: str) -> None:
    """Its neighbours have their own vectors; the message says what is wrong and quotes nothing."""
    body = read({"text": "a"}, bad, {"text": "c"})
    inputs = request_of(body).inputs
    assert (inputs[0], inputs[2]) == ("a", "c")
    first, failed, last = answer_of(body)
    assert (first["data"], last["data"]) == ({"vector": [0, 1]}, {"vector": [4, 5]})
    assert (failed["recordId"], failed["data"], failed["warnings"]) == ("r1", {}, None)
    (error,) = failed["errors"]
    assert error["message"].startswith(message)
    assert SECRET not in error["message"]


def test_a_text_that_was_cut_is_answered_with_a_warning() -> None:
    """Indexers show it beside the document; whatever fails alone has its error only."""
    body = read({"chunk": "a"}, {"chunk": "b"}, {}, query={"input": "chunk"})
    vectors = np.ones((3, 2), np.float32)
    result = EmbedResult(vectors, (4, 4, 4), "m", "r", max_tokens=4, cut=(1, 2))
    short, cut, bad = json.loads(azure_search.format_result(result, body))["values"]
    assert short["warnings"] is None
    (warning,) = cut["warnings"]
    assert warning["message"].startswith("data.chunk was truncated to the model's 4 tokens")
    assert (cut["data"], cut["errors"]) == ({"vector": [1, 1]}, None)
    assert (len(bad["errors"]), bad["warnings"]) == (1, None)


def test_records_that_are_all_bad_are_still_answered() -> None:
    """An empty query to a vectorizer is one such record: its error, not a refused request."""
    body = read({"text": ""})
    assert request_of(body).inputs != ("",)
    assert [each["data"] for each in answer_of(body)] == [{}]


def test_the_query_string_says_what_the_service_cannot() -> None:
    """What the texts are for, how long vectors are, and what the skill calls its input and output."""
    query = {"input": "chunk", "output": "embedding", "input_type": "query", "dimensions": "2"}
    body = read({"chunk": "a", "text": "b"}, {"text": "c"}, query={**query, "code": "key", "x": "y"})
    request = request_of(body)
    assert request.inputs[0] == "a"
    assert (request.input_type, request.dimensions, request.prompt_name) == ("query", 2, None)
    good, bad = answer_of(body)
    assert good["data"] == {"embedding": [0, 1]}
    assert bad["errors"][0]["message"].startswith("data.chunk is missing")
    assert request_of(read({"text": "a"}, query={"prompt_name": "q"})).prompt_name == "q"


WHOLE = "dimensions must be a whole number, 1 or more"
INPUT_TYPES = "input_type must be one of query, document, classification, clustering"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        *(({"dimensions": value}, WHOLE) for value in ("0", "two", "NaN", "1.5", "1e999", "9" * 99)),
        ({"input_type": "search_query"}, INPUT_TYPES),
    ],
)
def test_bad_parameters_are_named_with_what_would_be_right(query: dict[str, str], message: str) -> None:
    """The URL stands in a skill's definition: whoever wrote it sees which part to mend, and how."""
    filled = RecordsBody([Record("1")], input_type="query", dimensions=2)
    for body in (RecordsBody([Record("1")]), filled):  # also where the body takes precedence
        with pytest.raises(InvalidInput) as caught:
            fill_from_query(body, query, OPERATION.query)
        assert (caught.value.message, caught.value.field) == (message, next(iter(query)))


def test_empty_parameters_say_nothing() -> None:
    """?input_type= is what a template without a value leaves; the names are as by default."""
    query = dict.fromkeys(("input_type", "dimensions", "input", "output"), "")
    body = read({"text": "a"}, query=query)
    assert request_of(body) == EmbedRequest("m", ("a",))
    assert answer_of(body)[0]["data"] == {"vector": [0, 1]}


def test_an_empty_prompt_name_says_that_there_is_none() -> None:
    """In the URL as in the body: a default prompt is switched off, whatever the texts are for."""
    query = {"prompt_name": "", "input_type": "query"}
    request = request_of(read({"text": "a"}, query=query))
    assert (request.prompt_name, request.input_type) == ("", "query")
    assert request_of(read({"text": "a"}, query={"input_type": "query"})).prompt_name is None


@pytest.mark.parametrize("count", [0, 4])
def test_no_records_and_too_many_are_refused(count: int) -> None:
    """There is no record to tell, or none to single out."""
    with pytest.raises(InvalidInput) as caught:
        request_of(read(*[{"text": "a"}] * count), max_inputs=3)
    assert caught.value.field == "values"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidInput("dimensions are too many", field="dimensions"), 400),
        (errors.UnknownModel("there is no model of that name", field="model"), 404),
        (errors.PayloadTooLarge("the input have 9 tokens", field="input"), 413),
        (errors.Overloaded("the queue is full"), 429),
        (errors.BackendFailed("the backend failed"), 502),
        (errors.ModelLoadFailed("it did not load"), 503),
        (errors.StoreUnavailable("the store did not answer"), 503),
        (errors.DeadlineExceeded("it took too long"), 503),
        (errors.BlitzError("internal error"), 500),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_may_work_later_has_a_status_that_the_indexer_repeats(
    error: BlitzError, status: int
) -> None:
    """429, 502 and 503 are repeated, and nothing else should be."""
    answered, content = azure_search.format_error(error)
    assert answered == status
    assert json.loads(content)["error"]["code"] == error.code


def test_errors_of_a_backend_name_the_records() -> None:
    """A backend speaks of inputs, which nobody sent here."""
    error = errors.PayloadTooLarge("the input have 9 tokens: send fewer at once", field="input")
    _, content = azure_search.format_error(error)
    assert json.loads(content)["error"]["message"] == "the values have 9 tokens: send fewer at once"


def test_msgpack_holds_each_vector_as_an_array() -> None:
    """The same records, for clients of our own."""
    body = read({"text": "a"}, {"text": ""})
    result = EmbedResult(np.array([[1, 2], [3, 4]], np.float32), (1, 1), "m", "r")
    data = azure_search.format_result_msgpack(result, body)
    good, bad = codec.unpack(data, max_bytes=len(data))["values"]
    assert good["recordId"] == "r0"
    assert good["data"]["vector"].dtype == np.float32
    assert good["data"]["vector"].tolist() == [1, 2]
    assert (bad["data"], len(bad["errors"])) == ({}, 1)
