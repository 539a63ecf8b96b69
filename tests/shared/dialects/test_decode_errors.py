from __future__ import annotations

import re

import pytest

from shared.dialects import cohere, cohere_embed, openai, tei, tei_scores
from shared.dialects.azure_search import RecordsBody
from shared.dialects.body import decode_body, read_present_fields
from shared.dialects.decode_errors import SEARCHED_BYTES
from shared.dialects.openai import EmbeddingsBody
from shared.dialects.operations import OPERATIONS, Operation
from shared.errors import InvalidInput, UnsupportedMediaType

DEEP = b"[" * 100_000 + b"]" * 100_000


def refused(data: bytes, kind: type = EmbeddingsBody) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        decode_body(data, "", kind)
    assert "private" not in caught.value.message
    caught.value.message.encode()  # it can be sent
    return caught.value


@pytest.mark.parametrize(
    ("kind", "body", "field", "choices"),
    [
        (
            openai.EmbeddingsBody,
            b'{"input":"a","encoding_format":"private"}',
            "encoding_format",
            "float, base64",
        ),
        (
            cohere_embed.TextsBody,
            b'{"embedding_types":["int8","private"]}',
            "embedding_types[1]",
            "float, base64, int8, uint8, binary, ubinary",
        ),
        (cohere_embed.TextsBody, b'{"truncate":"private"}', "truncate", "NONE, START, END"),
        (
            tei.SimilarityBody,
            b'{"inputs":{"source_sentence":"a","sentences":["b"]},"parameters":{"truncation_direction":"private"}}',
            "parameters.truncation_direction",
            "Right, Left, right, left",
        ),
    ],
)
def test_a_wrong_choice_is_told_the_right_ones(
    kind: type, body: bytes, field: str, choices: str
) -> None:
    """At whatever depth; what was sent is not repeated."""
    error = refused(body, kind)
    assert error.message == f"{field} must be one of {choices}"
    assert error.field == field


def test_a_body_that_nests_too_deeply_is_told_so() -> None:
    """It is valid JSON; no limit of the interpreter is told, but what is more than enough."""
    error = refused(b'{"input":"private","x":%s}' % DEEP)
    assert error.message == "the body nests too deeply: no field needs more than 16 levels"


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        (EmbeddingsBody, b'{"input":"private \\ud83d"}', "input"),
        (EmbeddingsBody, b'{"input":["a","\\ude00 private"]}', "input[1]"),
        (EmbeddingsBody, b'{"input":["a","private \xff"]}', "input[1]"),
        (EmbeddingsBody, b'{"input":"\xed\xa0\x80 private"}', "input"),
        (RecordsBody, b'{"values":[{"recordId":"0","data":{"text":"\\ud83d"}}]}', "values[0].data.text"),
    ],
)
def test_a_text_that_is_no_unicode_is_named(kind: type, body: bytes, field: str) -> None:
    """Half of a surrogate pair, or bytes that are not UTF-8: a client cut or encoded it wrongly."""
    error = refused(body, kind)
    assert error.message == f"{field} is not valid Unicode: send UTF-8, no lone surrogates"
    assert error.field == field


@pytest.mark.parametrize(
    "body",
    [
        b'{"input":"a","\\ud800 private":1}',
        b'{"the private one":"\\ud800"}',
        b'"\\ud800 private"',
        b'{"input":"a","x":%s"\\ud800"%s}' % (b"[" * 300, b"]" * 300),
    ],
)
def test_what_is_no_name_of_a_field_is_not_repeated(body: bytes) -> None:
    """Keys are texts of the client too."""
    error = refused(body)
    assert error.message.startswith("a text is not valid Unicode")
    assert error.field is None


@pytest.mark.parametrize("text", [b"\xff", b"\\ud800"])
def test_a_large_body_that_is_no_unicode_is_not_searched(text: bytes) -> None:
    """It is refused all the same."""
    error = refused(b'{"input":["%s","%s"]}' % (b"a" * SEARCHED_BYTES, text))
    assert error.message.startswith("the body is not valid JSON")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_numbers_that_json_lacks_are_told_so(number: bytes) -> None:
    """Python writes them unasked."""
    error = refused(b'{"input":"private","dimensions":%s}' % number)
    assert error.message.startswith("the body is not valid JSON, which has no NaN or Infinity (byte 3")


def test_an_empty_body_is_told_so() -> None:
    """Not that it was cut off."""
    assert refused(b"").message == "the body is empty: send a JSON object"


@pytest.mark.parametrize("body", [b"null", b'"private"', b'[{"input":"private"}]'])
def test_a_body_that_is_no_object_is_told_so(body: bytes) -> None:
    """A message without a field says that it is the body that is meant."""
    assert refused(body).message.startswith("the body must be an object: it is ")


@pytest.mark.parametrize("body", [b"{", b"{'input':'private'}", b"input=private"])
def test_other_bodies_are_no_valid_json(body: bytes) -> None:
    """With the decoder's own reason."""
    assert refused(body).message.startswith("the body is not valid JSON: ")


LISTS = (
    "a text, a list of texts, a list of token ids, a list of lists of token ids, or a list of objects"
)


@pytest.mark.parametrize(
    ("kind", "body", "field", "message"),
    [
        (EmbeddingsBody, b"{}", "input", f"input is missing: give {LISTS}"),
        (EmbeddingsBody, b"[]", None, "the body must be an object: it is a list"),
        (EmbeddingsBody, b"null", None, "the body must be an object: it is null"),
        (EmbeddingsBody, b'{"input":null}', "input", f"input must be {LISTS}, not null"),
        (EmbeddingsBody, b'{"input":{}}', "input", f"input must be {LISTS}, not an object"),
        (
            EmbeddingsBody,
            b'{"input":1.5}',
            "input",
            f"input must be {LISTS}, not a number with a fraction",
        ),
        (
            EmbeddingsBody,
            b'{"input":["private",null]}',
            "input[1]",
            "input[1] must be a text, a token id from 0 to 2147483647, a list of token ids, or an "
            "object, not null",
        ),
        (
            EmbeddingsBody,
            b'{"input":[[1,"private"]]}',
            "input[0][1]",
            "input[0][1] must be a token id from 0 to 2147483647, not a text",
        ),
        (
            EmbeddingsBody,
            b'{"input":[-1]}',
            "input[0]",
            "input[0] must be a text, a token id from 0 to 2147483647, a list of token ids, "
            "or an object",
        ),
        (
            EmbeddingsBody,
            b'{"input":"a","dimensions":0}',
            "dimensions",
            "dimensions must be a whole number from 1 to 2147483647",
        ),
        (
            EmbeddingsBody,
            b'{"input":"a","dimensions":"private"}',
            "dimensions",
            "dimensions must be a whole number from 1 to 2147483647, not a text",
        ),
        (EmbeddingsBody, b'{"input":"a","model":3}', "model", "model must be a text, not a number"),
        (
            EmbeddingsBody,
            b'{"input":"a","encoding_format":3}',
            "encoding_format",
            "encoding_format must be one of float, base64, not a number",
        ),
        (
            EmbeddingsBody,
            b'{"input":"a","truncate":"private"}',
            "truncate",
            "truncate must be true or false, not a text",
        ),
        (tei.SimilarityBody, b'{"inputs":"private"}', "inputs", "inputs must be an object, not a text"),
        (
            tei.SimilarityBody,
            b'{"inputs":{"sentences":["private"]}}',
            "inputs.source_sentence",
            "inputs.source_sentence is missing: give a text",
        ),
        (
            tei_scores.PredictBody,
            b'{"inputs":[["a"],["b",3]]}',
            "inputs[1][1]",
            "inputs[1][1] must be a text, not a number",
        ),
        (
            cohere.DocumentsBody,
            b'{"query":"a","documents":"private"}',
            "documents",
            "documents must be a list of texts or a list of objects, not a text",
        ),
        (
            cohere.DocumentsBody,
            b'{"query":"a","documents":["a",{"private":"a"}]}',
            "documents[1].text",
            "documents[1].text is missing: give a text",
        ),
        (RecordsBody, b'{"values":[3]}', "values[0]", "values[0] must be an object, not a number"),
        (
            RecordsBody,
            b'{"values":[{"recordId":3}]}',
            "values[0].recordId",
            "values[0].recordId must be a text, not a number",
        ),
    ],
)
def test_what_a_field_must_be_is_said_in_words(
    kind: type, body: bytes, field: str | None, message: str
) -> None:
    """No type of the decoder's; what was sent by its kind alone."""
    error = refused(body, kind)
    assert (error.field, error.message) == (field, message)


@pytest.mark.parametrize("each", OPERATIONS, ids=lambda each: each.summary)
def test_no_dialect_tells_a_type_of_the_decoder(each: Operation) -> None:
    """Every field of every body, set to what no field is."""
    for name in each.body.__struct_fields__:
        for value in (b"[{}]", b"{}", b"3.5", b'""', b"true"):
            told = ""
            try:
                decode_body(b'{"%b":%b}' % (name.encode(), value), "", each.body)
            except InvalidInput as error:
                told = error.message
            assert not re.search("`|Expected|something else", told), told


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-32-le"]
)
def test_a_body_in_another_unicode_is_told_so(encoding: str) -> None:
    """PowerShell and .NET write it unasked."""
    body = '{"input":"private"}'.encode(encoding)
    assert refused(body).message == "the body is in UTF-16 or UTF-32: send it in UTF-8"


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (BOM + b'{"input":"a"}', ""),
        (BOM + b'{"input":"a"}', "application/json; charset=utf-8"),
        (b'{"input":"a"}', 'application/json;charset="UTF-8"'),
        (b'{"input":"a"}', "application/json; charset=iso-8859-1"),
    ],
)
def test_a_mark_before_utf_8_is_no_part_of_the_body(body: bytes, content_type: str) -> None:
    """Nor does a charset matter in which it would be the same."""
    assert decode_body(body, content_type, EmbeddingsBody).input == "a"
    assert read_present_fields(body.replace(b"input", b"texts"), content_type) == {"texts": False}


def test_another_charset_is_refused_where_it_would_be_another_text() -> None:
    """Bytes that are UTF-8 by chance are no other text without a word."""
    body = '{"input":"\u00c3\u00a9"}'.encode("latin-1")
    with pytest.raises(UnsupportedMediaType, match="in UTF-8"):
        decode_body(body, "application/json; charset=ISO-8859-1", EmbeddingsBody)
    assert decode_body(body, "application/json", EmbeddingsBody).input == "\u00e9"


def test_a_second_mark_is_not_json() -> None:
    """One is a tool's habit."""
    assert refused(BOM + BOM + b'{"input":"private"}').message.startswith("the body is not valid JSON")
