"""shared/bulk/inputs/jsonl.py: every line is a row, a bad one, or the file is refused with the line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.bulk.rows import BadRow, Row
from shared.errors import InvalidInput
from tests.shared.bulk.sources import read_all

LINE = b'{"id": "a", "text": "fr\xc3\xbch", "n": [1, {"b": "\\u00fc"}]}'
REQUEST = b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}}'


@pytest.mark.parametrize("line", [LINE, REQUEST])
def test_a_file_that_is_cut_off_is_refused_wherever_it_is(line: bytes) -> None:
    """Nobody knows how many lines were behind; a last line without its end is whole."""
    for end in range(1, len(line)):
        with pytest.raises(InvalidInput, match="ends in the middle of line 2, it is cut off: send it"):
            read_all("a.jsonl", line + b"\n" + line[:end])
        with pytest.raises(InvalidInput, match="ends in the middle of line 1"):
            read_all("a.jsonl", line[:end])
    for whole in (line, line + b"\n", line + b" \r\n"):
        assert len(read_all("a.jsonl", line.replace(b'"a"', b'"b"') + b"\n" + whole)) == 2


@pytest.mark.parametrize("last", [b"nonsense", b'"text"', b"{]", b'{"text": "x"} {', b"\xef\xbb\xbf{}"])
def test_a_last_line_that_is_wrong_is_a_bad_row(last: bytes) -> None:
    """It is no beginning of an object."""
    rows = read_all("a.jsonl", LINE + b"\n" + last)
    assert [isinstance(row, BadRow) for row in rows] == [False, True]


JSON = st.sampled_from(
    ['{"text": "a"}', '{"text": ""}', "{}", "[]", '{"text": "a\\u0000"}', "", " ", "x"]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(JSON | st.text(st.sampled_from('{}[]":,atex\\u 1\r'), max_size=12), max_size=8))
def test_every_line_of_json_is_a_row_a_bad_one_or_the_file_is_refused(lines: list[str]) -> None:
    """Python's json module is the other reader."""
    data = "\n".join(lines).encode()
    try:
        found = read_all("a.jsonl", data)
    except InvalidInput:
        # It begins as an array, not a single row is right, or the last line is not.
        begin = "".join(lines).lstrip()[:1]
        assert begin == "[" or not any(map(good, lines)) or not good(lines[-1])
        return
    there = [line for line in lines if line.strip(" \t\r")]
    assert [isinstance(row, Row) for row in found] == list(map(good, there))
    assert [row.text for row in found if isinstance(row, Row)] == [
        json.loads(line)["text"] for line in there if good(line)
    ]


def good(line: str) -> bool:
    try:
        value = json.loads(line)
    except ValueError:
        return False
    text = value.get("text") if isinstance(value, dict) else None
    return isinstance(text, str) and text != ""
