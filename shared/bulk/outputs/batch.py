"""OpenAI Batch's output and error files, from embedded chunks and bad rows.

It does not know storage, or how a batch came to be. Ids are derived from job and line, so that equal
inputs give equal bytes. Shapes: https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

import msgspec
import numpy as np
import orjson

from shared.bulk import arrow as pa
from shared.bulk.rows import TEXT_COUNT, BadRow, vectors_of
from shared.contracts import EmbedResult, FloatMatrix
from shared.dialects.openai import EmbeddingsBody, format_line
from shared.vectors import finish


class _Asked(msgspec.Struct, frozen=True):
    model: str | None = None
    dimensions: int | None = None
    encoding_format: Any = None


class _Request(msgspec.Struct):
    """One input line, whose texts may lie in several chunks."""

    line: int
    custom_id: str
    texts: int
    asked: _Asked
    vectors: list[FloatMatrix] = msgspec.field(default_factory=list)
    tokens: list[int] = msgspec.field(default_factory=list)
    truncated: list[int] = msgspec.field(default_factory=list)


def write_batch(chunks: Iterable[pa.Table], *, job: str, model: str) -> Iterator[bytes]:
    """A line for each request of which all texts have a vector; the others must be in the error file.

    Where texts were cut, the response has `truncated`, their indices, beside its body.

    Vectors that are longer than a request's dimensions are cut and scaled to unit length again.
    model: what the answers name where the request names none.
    """
    request: _Request | None = None
    for chunk in chunks:
        lines: list[bytes] = []
        vectors, tokens = vectors_of(chunk), chunk["tokens"].to_pylist()
        names = ("line", "id", TEXT_COUNT, "fields", "truncated")
        columns = [chunk[name].to_pylist() for name in names]
        for at, (line, custom_id, texts, fields, cut) in enumerate(zip(*columns, strict=True)):
            if request is None or request.line != line:
                lines += _answer(request, job, model)
                asked = msgspec.json.decode(fields or "{}", type=_Asked)
                request = _Request(line, custom_id, texts, asked)
            if cut:
                request.truncated.append(len(request.vectors))
            request.vectors.append(vectors[at])
            request.tokens.append(tokens[at])
        yield b"".join(lines)
    yield b"".join(_answer(request, job, model))


def write_batch_errors(bad: Iterable[BadRow], *, job: str) -> Iterator[bytes]:
    """An error line for each input line: of bad rows of the same line the first.

    bad: sorted by line, so that a request whose texts failed one by one has one error.
    """
    last: int | None = None
    for row in bad:
        if row.line != last:
            error = {"code": row.code, "message": row.message, "line": row.line}
            request = {"id": _id("batch_req", job, row.line), "custom_id": row.id}
            yield _dump({**request, "response": None, "error": error})
        last = row.line


def _answer(request: _Request | None, job: str, model: str) -> list[bytes]:
    if request is None or len(request.vectors) != request.texts:
        return []
    asked = request.asked
    vectors = np.stack(request.vectors)
    if asked.dimensions is not None and asked.dimensions < vectors.shape[1]:
        vectors = finish(vectors, asked.dimensions, True)
    result = EmbedResult(vectors, tuple(request.tokens), asked.model or model, revision="")
    # The body says float where the caller says nothing, as the service itself does.
    body = format_line(result, EmbeddingsBody("", encoding_format=asked.encoding_format))
    response = {
        "status_code": 200,
        "request_id": _id("req", job, request.line),
        **({"truncated": request.truncated} if request.truncated else {}),
        "body": orjson.Fragment(body),
    }
    answer = {"id": _id("batch_req", job, request.line), "custom_id": request.custom_id}
    return [_dump({**answer, "response": response, "error": None})]


def _id(kind: str, job: str, line: int) -> str:
    return f"{kind}_{sha256(f'{kind}/{job}/{line}'.encode()).hexdigest()[:32]}"


def _dump(line: dict[str, object]) -> bytes:
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
