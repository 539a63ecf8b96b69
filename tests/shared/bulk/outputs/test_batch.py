"""shared/bulk/outputs/batch.py: the lines that OpenAI's clients read."""

from __future__ import annotations

import base64
import json

import numpy as np
import pyarrow as pa

from shared.bulk.outputs.batch import write_batch, write_batch_errors
from shared.bulk.rows import BadRow, cut_chunks, embedded
from tests.shared.bulk.outputs.vectors import D, all_vectors, vectors_for
from tests.shared.bulk.sources import read_all

REQUESTS: dict[str, dict[str, object]] = {
    "one": {"input": "x"},
    "many": {"input": ["a", "b", "c", "d", "e"]},
    "base64": {"input": ["x"], "encoding_format": "base64"},
    "short": {"input": ["x", "y"], "dimensions": 3},
}


def batch_parts(max_rows: int) -> list[pa.Table]:
    lines = [
        {"custom_id": id, "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", **body}}
        for id, body in REQUESTS.items()
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    return [
        embedded(chunk.table, vectors_for(len(chunk.table), chunk.index), range(len(chunk.table)))
        for chunk in cut_chunks(read_all("a.jsonl", data), max_rows=max_rows)
    ]


def answers(chunks: list[pa.Table]) -> dict[str, dict[str, object]]:
    lines = map(json.loads, b"".join(write_batch(chunks, job="job", model="m")).splitlines())
    return {line["custom_id"]: line for line in lines}


def test_each_request_has_one_line_even_if_its_texts_lie_in_several_parts() -> None:
    """With OpenAI's list of embeddings as the body."""
    chunks = batch_parts(3)
    vectors = all_vectors(chunks)
    found = answers(chunks)
    assert list(found) == list(REQUESTS)
    line = found["many"]
    assert (line["error"], line["response"]["status_code"]) == (None, 200)  # type: ignore[index]
    body = line["response"]["body"]  # type: ignore[index]
    assert (body["object"], body["model"]) == ("list", "m")
    assert body["usage"] == {"prompt_tokens": 1 + 2 + 0 + 1 + 2, "total_tokens": 6}
    assert [(item["object"], item["index"]) for item in body["data"]] == [
        ("embedding", index) for index in range(5)
    ]
    returned = np.array([item["embedding"] for item in body["data"]], np.float32)
    assert returned.tobytes() == vectors[1:6].tobytes()


def test_vectors_have_the_format_and_the_dimensions_that_the_request_asks_for() -> None:
    """Cut ones have unit length again."""
    chunks = batch_parts(512)
    vectors = all_vectors(chunks)
    found = answers(chunks)
    (item,) = found["base64"]["response"]["body"]["data"]  # type: ignore[index]
    assert base64.b64decode(item["embedding"]) == vectors[6].tobytes()
    short = [item["embedding"] for item in found["short"]["response"]["body"]["data"]]  # type: ignore[index]
    expected = vectors[7:, :3] / np.linalg.norm(vectors[7:, :3], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, rtol=1e-6)
    assert len(found["one"]["response"]["body"]["data"][0]["embedding"]) == D  # type: ignore[index]


def test_ids_are_different_for_each_line_and_the_same_in_each_run() -> None:
    """So are all bytes; another job has other ids."""
    chunks = batch_parts(3)
    first = b"".join(write_batch(chunks, job="job", model="m"))
    assert first == b"".join(write_batch(batch_parts(3), job="job", model="m"))
    found = answers(chunks)
    ids = {line["id"] for line in found.values()}
    ids |= {line["response"]["request_id"] for line in found.values()}  # type: ignore[index]
    assert len(ids) == 2 * len(REQUESTS)
    assert all(str(line["id"]).startswith("batch_req_") for line in found.values())
    other = map(json.loads, b"".join(write_batch(chunks, job="other", model="m")).splitlines())
    assert not ids & {line["id"] for line in other}


def test_a_request_that_lacks_a_text_s_vector_has_no_line() -> None:
    """Its error is in the error file, once."""
    chunks = batch_parts(3)
    incomplete = [chunks[0], chunks[1].slice(1), chunks[2]]
    assert list(answers(incomplete)) == ["one", "base64", "short"]
    assert list(answers([chunks[0], *chunks[2:]])) == ["one", "base64", "short"]
    assert list(answers(chunks[:-1])) == ["one", "many"]


def test_error_lines() -> None:
    """One for each input line, with the same id that its answer would have had."""
    bad = [
        BadRow(1, None, "invalid_json_line", "the line is not a JSON object"),
        BadRow(2, "many", "failed", "first"),
        BadRow(2, "many", "failed", "second"),
        BadRow(3, "c", "model_mismatch", "body.model must be m"),
    ]
    lines = [json.loads(line) for line in write_batch_errors(bad, job="job")]
    assert [(line["custom_id"], line["response"], line["error"]) for line in lines] == [
        (row.id, None, {"code": row.code, "message": row.message, "line": row.line})
        for row in (bad[0], bad[1], bad[3])
    ]
    assert lines[1]["id"] == answers(batch_parts(512))["many"]["id"]
