from __future__ import annotations

import pytest

from shared.dialects import cohere_embed, openai, tei
from shared.dialects.azure_search import RecordsBody
from shared.dialects.body import decode_body
from shared.dialects.openai import EmbeddingsBody
from shared.dialects.unreadable import SEARCHED_BYTES
from shared.errors import InvalidInput

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
    assert error.message == "the body nests too deeply: 16 levels are more than any field needs"


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
    assert refused(body).message.startswith("the body is of another type: Expected `object`")


@pytest.mark.parametrize("body", [b"{", b"{'input':'private'}", b"input=private", b"\xff\xfe{\x00"])
def test_other_bodies_are_no_valid_json(body: bytes) -> None:
    """With the decoder's own reason."""
    assert refused(body).message.startswith("the body is not valid JSON: ")
