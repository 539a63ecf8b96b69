"""Responses of the public API: timing headers, error responses, paced sending.

Does not know routes or backends; dialects know the bodies.
"""

from __future__ import annotations

import math

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from functions.api.paths import allowed_methods, nearest_path
from functions.http.pace import MIN_BYTES_PER_S, PAUSE_S, MinimumRate
from shared.contracts import (
    AnyRequest,
    DecodeRequest,
    DecodeResult,
    EmbedRequest,
    EmbedResult,
    EmbedSparseRequest,
    EmbedSparseResult,
    EmbedTokensRequest,
    EmbedTokensResult,
    RerankRequest,
    RerankResult,
    Result,
    Timings,
    TokenizeRequest,
    TokenizeResult,
)
from shared.dialects.body import JSON
from shared.dialects.operations import FormatError
from shared.errors import BlitzError, RequestTimeout, printable
from shared.request_size import MAX_NUMBERS, estimate_request
from shared.wire import codec

# Larger results are encoded in a thread, so that the event loop runs between the steps. One call of
# orjson keeps the GIL (about 11 ms for 1,024 x 384 floats): encoding rows in groups would halve that
# pause, but was measured to take 40 % longer in total.
LARGE_RESULT_FLOATS = 64 * 1024
LARGE_RESULT_TOKENS = 2 * 1024


NAMED_CUTS = 100
"""Indices in x-truncated: each takes up to 5 characters, and a proxy may refuse 4 kB of headers."""
SLICE_BYTES = 64 * 1024
_BYTES_PER_FLOAT, _BYTES_PER_TOKEN, _BYTES_PER_ID = 16, 128, 32
_FLOATS_PER_WORD = 8
"""What writing {"index": 2023, "value": 0.53} takes, in floats of a vector."""
_WORDS, _BYTES_PER_WORD = 512, 256
"""Of a sparse vector: more than trained models have of a text, and what its JSON takes."""


def accepts_msgpack(request: Request) -> bool:
    """Whether the client accepts msgpack."""
    accepted = request.headers.get("accept", "").lower().split(",")
    return any(item.partition(";")[0].strip() == codec.CONTENT_TYPE for item in accepted)


def is_large(result: Result) -> bool:
    """Whether the result should be encoded in a thread."""
    if isinstance(result, TokenizeResult | DecodeResult):
        return result.total_tokens > LARGE_RESULT_TOKENS
    if isinstance(result, EmbedSparseResult):
        return result.rows * _FLOATS_PER_WORD > LARGE_RESULT_FLOATS
    if isinstance(result, EmbedResult | EmbedTokensResult):
        return result.vectors.size > LARGE_RESULT_FLOATS
    return False


def headers_of(asked: AnyRequest, result: Result, total_s: float) -> dict[str, str]:
    """TEI's headers (whole milliseconds), Server-Timing (hundredths), x-model-revision, x-int8-range,
    x-rerank-method, x-truncated.

    total_s: of the request.
    """
    timings = result.timings
    milliseconds = {
        "x-compute-time": total_s,
        "x-total-time": total_s,
        "x-tokenization-time": timings.tokenization_s,
        "x-queue-time": timings.queue_s,
        "x-inference-time": timings.inference_s,
    }
    headers = {
        "x-model-revision": result.revision,
        "x-compute-type": result.device,
        "x-compute-characters": str(_characters(asked)),
        "x-compute-tokens": str(result.total_tokens),
        **{name: str(round(seconds * 1000)) for name, seconds in milliseconds.items()},
    }
    headers["server-timing"] = _server_timing(timings, total_s)
    if isinstance(result, RerankResult):
        headers["x-rerank-method"] = result.method
    if isinstance(result, EmbedResult):
        headers["x-int8-range"] = f"{result.int8_range:g}"
    if result.cut:
        headers["x-truncated"] = _truncated(result.cut)
    return headers


def _server_timing(timings: Timings, total_s: float) -> str:
    """As browsers and proxies read it: https://www.w3.org/TR/server-timing/. Short texts take less than
    the millisecond that TEI's headers count in.
    """
    return (
        f"tokenization;dur={timings.tokenization_s * 1000:.2f}, queue;dur={timings.queue_s * 1000:.2f}, "
        f"inference;dur={timings.inference_s * 1000:.2f}, total;dur={total_s * 1000:.2f}"
    )


def _truncated(cut: tuple[int, ...]) -> str:
    """Count and indices of truncated inputs, as "2; 0,17"; at most NAMED_CUTS indices."""
    more = ",..." if len(cut) > NAMED_CUTS else ""
    return f"{len(cut)}; {','.join(map(str, cut[:NAMED_CUTS]))}{more}"


def _characters(asked: AnyRequest) -> int:
    """Characters of all texts; token ids count as none."""
    texts = [asked.query, *asked.texts] if isinstance(asked, RerankRequest) else asked.texts
    return sum(
        len(each)
        for text in texts
        for each in ((text,) if isinstance(text, str) else text)
        if isinstance(each, str)
    )


class PacedResponse(Response):
    """Sends its body in slices, each once the caller has read most of the previous one.

    A body sent whole would stay uncounted in the connection's buffer for as long as the caller likes. A
    caller that reads fewer than MIN_BYTES_PER_S is disconnected.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        rate = MinimumRate(bytes_per_s=MIN_BYTES_PER_S, grace_s=PAUSE_S)
        for start in range(0, max(1, len(self.body)), SLICE_BYTES):
            end = start + SLICE_BYTES
            sent, more = bytes(self.body[start:end]), end < len(self.body)
            message = {"type": "http.response.body", "body": sent, "more_body": more}
            try:
                await rate.wait_for(send(message), len(sent))
            except RequestTimeout:
                return  # the server closes an incomplete response


def answer_bytes(asked: AnyRequest, dimensions: int, max_tokens: int) -> int:
    """Estimated memory of the response: its arrays and their text form.

    dimensions: of the model's vectors. max_tokens: of a request.
    """
    if isinstance(asked, EmbedRequest):
        return len(asked.inputs) * dimensions * _BYTES_PER_FLOAT
    if isinstance(asked, EmbedSparseRequest):
        return len(asked.inputs) * min(_WORDS, dimensions) * _BYTES_PER_WORD
    if isinstance(asked, EmbedTokensRequest):
        tokens = estimate_request(asked, paired=False, max_tokens=None)
        return min(tokens, max_tokens, MAX_NUMBERS // max(1, dimensions)) * dimensions * _BYTES_PER_FLOAT
    if isinstance(asked, TokenizeRequest):
        return min(_characters(asked), max_tokens) * _BYTES_PER_TOKEN
    if isinstance(asked, DecodeRequest):
        return sum(map(len, asked.inputs)) * _BYTES_PER_ID
    return 0


def error_response(format_error: FormatError, error: BlitzError) -> Response:
    """An error in a dialect's shape, with Retry-After where a retry helps."""
    status, body = format_error(error)
    response = json_response(body, status)
    if status == 408:
        response.headers["connection"] = "close"  # do not wait for the rest of the body
    if status in (429, 503):
        wait_s = 1.0 if error.retry_after_s is None else error.retry_after_s
        response.headers["retry-after"] = str(math.ceil(wait_s))
        response.headers["retry-after-ms"] = str(math.ceil(wait_s * 1000))
    return response


async def answer_unrouted(request: Request, error: Exception) -> Response:
    """404 and 405 for paths without a dialect, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    code, message = "invalid_request", error.detail
    routes, path = request.app.routes, request.scope["path"]
    if error.status_code == 404:
        near = nearest_path(routes, path)
        hint = f"did you mean {near}? " if near else ""
        code, message = (
            "not_found",
            f"no route at {printable(path)}: {hint}see /docs for all routes",
        )
    elif error.status_code == 405:
        headers["Allow"] = ", ".join(allowed_methods(routes, path))
        code, message = "method_not_allowed", f"send {headers['Allow']} to {printable(path)}: see /docs"
    shape = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    response = json_response(orjson.dumps({"error": shape}), error.status_code)
    response.headers.update(headers)
    return response


def json_response(content: bytes, status: int = 200) -> Response:
    """JSON that is encoded already."""
    return Response(content, status, media_type=JSON)
