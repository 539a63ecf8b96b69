"""shared/bulk/inputs/batch.py: what is said of a request that cannot be one, in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.bulk.rows import BadRow, Row
from tests.shared.bulk.sources import read_all

NUMBER = "body.dimensions must be a whole number from 1 to 2147483647"


def line(body: Any, url: str = "/v1/embeddings") -> bytes:
    return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body}).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": {"a": "zebra"}}, "body.input must be a text, a list of texts,"),
        ({"input": "zebra", "dimensions": 0}, NUMBER),
        ({"input": "zebra", "dimensions": "zebra"}, f"{NUMBER}, not a text"),
        ({"input": "zebra", "model": 7}, "body.model must be a text, not a number"),
        (
            {"input": "zebra", "encoding_format": "zebra"},
            "body.encoding_format must be one of float, base64",
        ),
        ({}, "body.input is missing: give a text"),
        ([1], "the body must be an object: it is a list"),
        ({"input": [[1]]}, "body.input must be a text or a list of texts: a batch takes no token ids"),
    ],
)
def test_a_body_that_cannot_be_read_is_told_in_words(body: Any, message: str) -> None:
    """Which field, and what would be right; nothing of what was sent."""
    [row] = read_all("a.jsonl", line(body))
    assert isinstance(row, BadRow)
    assert row.message.startswith(message)
    assert not any(what in row.message for what in ("zebra", "Expected", "`"))


@pytest.mark.parametrize("url", ["/v1/embeddings", "/embeddings"])
def test_lines_of_openai_and_of_azure_are_requests(url: str) -> None:
    """Whichever URL they name."""
    [row] = read_all("a.jsonl", line({"input": "x"}, url))
    assert isinstance(row, Row)


@pytest.mark.parametrize("url", ["/chat/completions", "/v1/embeddings/", "embeddings", "", 7])
def test_lines_for_something_else_are_told_what_there_is(url: Any) -> None:
    """Both of them."""
    [row] = read_all("a.jsonl", line({"input": "x"}, url))
    assert isinstance(row, BadRow)
    assert (row.code, row.message) == ("url_mismatch", "url must be /v1/embeddings or /embeddings")
