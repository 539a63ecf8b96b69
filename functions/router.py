"""Public HTTP: read a body in a client's dialect, call a backend, answer in the same dialect.

Does not know models, batches or where the backend is; dialects know the shapes.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import msgspec
import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from functions.caller import LARGE_BODY_BYTES, log_without_content, read_body, while_connected
from shared import telemetry, wire
from shared.contracts import EmbedRequest, EmbedResult, ModelCard, ModelState
from shared.dialects import openai, tei
from shared.errors import (
    BlitzError,
    DeadlineExceeded,
    InvalidInput,
    UnknownModel,
    UnsupportedMediaType,
)
from shared.settings import Settings
from shared.telemetry import Telemetry

if TYPE_CHECKING:
    import azure.functions as func

    from shared.backend_client import Backend

VERSION = "0.1.0"
JSON = "application/json"

# More than this is coded in a thread, so that the event loop goes on between the steps. One call of
# orjson keeps the GIL (about 11 ms for 1,024 x 384 floats): encoding chunks of rows would halve that
# pause, and was measured to take 40 % longer in all.
LARGE_RESULT_FLOATS = 64 * 1024

_AT_PATH = re.compile(r" - at `(?:key` in `)?\$\.?(?P<field>[^`]*)`$")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]*)`")

T = TypeVar("T")
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


class Dialect(Protocol):
    """What a module of shared.dialects offers to a route that embeds."""

    @property
    def Body(self) -> type[Any]: ...
    def request_from(self, body: Any, *, model: str, settings: Settings) -> EmbedRequest: ...
    def format_result(self, result: EmbedResult, body: Any) -> bytes: ...
    def format_result_msgpack(self, result: EmbedResult) -> bytes: ...
    def format_error(self, error: BlitzError) -> tuple[int, bytes]: ...


class Endpoints:
    """One method per kind of route; each raises BlitzError, `answering` makes that a response."""

    def __init__(self, settings: Settings, backend: Backend, metrics: Telemetry) -> None:
        self._settings = settings
        self._backend = backend
        self._metrics = metrics

    def answering(self, dialect: Dialect, endpoint: Endpoint) -> Endpoint:
        """`endpoint` within the deadline, its errors in `dialect`'s shape and no other."""

        async def answer(request: Request) -> Response:
            try:
                async with asyncio.timeout(self._settings.request_timeout_s) as deadline:
                    return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except BlitzError as raised:
                error = raised
            except Exception as raised:
                if isinstance(raised, TimeoutError) and deadline.expired():
                    error = DeadlineExceeded("the request took too long")
                else:
                    log_without_content(raised)
                    error = BlitzError("internal error")
            self._metrics.request_failed(error.code)
            return _error_response(dialect, error)

        return answer

    async def embed(self, request: Request, dialect: Dialect) -> Response:
        started = time.perf_counter()
        data = await read_body(request, self._settings.max_body_bytes)
        decode = partial(decode_body, data, request.headers.get("content-type", ""), dialect.Body)
        body = await _off_loop_if(len(data) > LARGE_BODY_BYTES, decode)
        named = request.path_params.get("model") or body.model or request.query_params.get("model")
        embed_request = dialect.request_from(
            body, model=named or (await self._default_card()).name, settings=self._settings
        )
        self._metrics.request_arrived(len(embed_request.inputs))
        result = await while_connected(
            request, self._backend.embed(embed_request), self._settings.request_timeout_s
        )
        if _accepts_msgpack(request):
            media_type, encode = wire.CONTENT_TYPE, partial(dialect.format_result_msgpack, result)
        else:
            media_type, encode = JSON, partial(dialect.format_result, result, body)
        content = await _off_loop_if(result.vectors.size > LARGE_RESULT_FLOATS, encode)
        total_s = time.perf_counter() - started
        self._metrics.request_succeeded(
            model=result.model,
            inputs=len(embed_request.inputs),
            tokens=result.total_tokens,
            duration_s=total_s,
            timings=result.timings,
        )
        return Response(content, 200, _timing_headers(embed_request, result, total_s), media_type)

    async def models(self, request: Request) -> Response:
        return _json(openai.format_models(await self._backend.cards()))

    async def model(self, request: Request) -> Response:
        return _json(openai.format_model(await self._card(request.path_params["model"])))

    async def info(self, request: Request) -> Response:
        name = request.query_params.get("model")
        card = await self._card(name) if name else await self._default_card()
        return _json(tei.format_info(card, self._settings, VERSION))

    async def health(self, request: Request) -> Response:
        """Liveness: this process answers. It says nothing of models, see /ready."""
        return Response()

    async def ready(self, request: Request) -> Response:
        try:
            states = await self._backend.states()
        except BlitzError as error:
            return _json(orjson.dumps({"ready": False, "reason": error.message, "models": []}), 503)
        ready = is_ready(states, self._settings.warm_models)
        return _json(orjson.dumps({"ready": ready, "models": states}), 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.render(), media_type=telemetry.CONTENT_TYPE)

    async def _card(self, name: str) -> ModelCard:
        cards = await self._backend.cards()
        for card in cards:
            if card.name == name:
                return card
        raise UnknownModel(f"there is no model of that name; there are: {_names(cards)}", field="model")

    async def _default_card(self) -> ModelCard:
        """The card of the model that a request gets when it names none."""
        if self._settings.default_model:
            return await self._card(self._settings.default_model)
        cards = await self._backend.cards()
        if len(cards) == 1:
            return cards[0]
        raise InvalidInput(f"name a model; there are: {_names(cards)}", field="model")


def is_ready(states: list[ModelState], warm_models: tuple[str, ...]) -> bool:
    """Whether requests will be answered soon.

    True once every model of `warm_models` is warm; with none named here (the backend has settings of
    its own), once any model is warm or none was ever asked for.
    """
    warm = {state.name for state in states if state.state == "warm"}
    if warm_models:
        return warm.issuperset(warm_models)
    return bool(warm) or all(state.state == "cold" for state in states)


def decode_body(data: bytes, content_type: str, kind: type[T]) -> T:
    """JSON or msgpack -> `kind`, a msgspec Struct. An absent content type means JSON.

    Raises InvalidInput with the field's path, UnsupportedMediaType.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    try:
        if media_type in ("", JSON):
            return msgspec.json.decode(data, type=kind)
        if media_type == wire.CONTENT_TYPE:
            return msgspec.convert(wire.unpack(data, max_bytes=len(data)), type=kind)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _AT_PATH.search(message) or _MISSING.search(message)
        field = found["field"] if found else ""
        raise InvalidInput(_AT_PATH.sub("", message), field=field or None) from error
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("the body is not valid JSON") from error
    raise UnsupportedMediaType(f"send {JSON} or {wire.CONTENT_TYPE} as Content-Type")


def create_app(settings: Settings, backend: Backend, metrics: Telemetry = telemetry.PROCESS) -> FastAPI:
    """The public ASGI app over `backend`. Starts and stops nothing: no lifespan."""
    app = FastAPI(title="BlitzEmbedding", version=VERSION, redoc_url=None)
    app.add_exception_handler(HTTPException, _answer_unrouted)
    endpoints = Endpoints(settings, backend, metrics)

    def add(method: str, path: str, summary: str, dialect: Dialect, endpoint: Endpoint) -> None:
        app.add_api_route(
            path,
            endpoints.answering(dialect, endpoint),
            methods=[method],
            summary=summary,
            name=f"{method} {path}",
            response_model=None,
            openapi_extra=_openapi(path, dialect if method == "POST" else None),
        )

    embed: list[tuple[Dialect, str, tuple[str, ...]]] = [
        (
            openai,
            "Embed (OpenAI)",
            (
                "/v1/embeddings",
                "/embeddings",
                "/openai/v1/embeddings",
                "/openai/deployments/{model}/embeddings",
            ),
        ),
        (tei, "Embed (Text Embeddings Inference)", ("/embed", "/")),
    ]
    for dialect, summary, paths in embed:
        for path in paths:
            add("POST", path, summary, dialect, partial(endpoints.embed, dialect=dialect))
    add("GET", "/v1/models", "The models there are", openai, endpoints.models)
    add("GET", "/v1/models/{model}", "One model", openai, endpoints.model)
    add("GET", "/info", "One model and the limits (Text Embeddings Inference)", tei, endpoints.info)
    add("GET", "/health", "Whether this process lives", tei, endpoints.health)
    add("GET", "/ready", "The state of each model", tei, endpoints.ready)
    add("GET", "/metrics", "Prometheus metrics", tei, endpoints.metrics)
    return app


def function_app(settings: Settings) -> func.AsgiFunctionApp:
    """The router as an Azure Functions app, over HTTP to the CPU app or with it in this process."""
    # Imported here, because each is slow to import and only one deployment or the other needs it.
    import azure.functions as func

    if settings.cpu_backend_url:
        from shared.backend_client import HttpBackend

        backend: Backend = HttpBackend(settings.cpu_backend_url, settings.request_timeout_s)
    else:
        from functions.inference import build_inference

        backend = build_inference(settings)
    app = create_app(settings, backend)
    return func.AsgiFunctionApp(app=app, http_auth_level=func.AuthLevel.ANONYMOUS)


async def _off_loop_if(large: bool, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work) if large else work()


def _accepts_msgpack(request: Request) -> bool:
    accepted = request.headers.get("accept", "").lower().split(",")
    return any(item.partition(";")[0].strip() == wire.CONTENT_TYPE for item in accepted)


def _timing_headers(request: EmbedRequest, result: EmbedResult, total_s: float) -> dict[str, str]:
    """TEI's: whole milliseconds."""
    timings = result.timings
    milliseconds = {
        "x-compute-time": total_s,
        "x-total-time": total_s,
        "x-tokenization-time": timings.tokenization_s,
        "x-queue-time": timings.queue_s,
        "x-inference-time": timings.inference_s,
    }
    return {
        "x-compute-type": "cpu",
        "x-compute-characters": str(sum(len(item) for item in request.inputs if isinstance(item, str))),
        "x-compute-tokens": str(result.total_tokens),
        **{name: str(round(seconds * 1000)) for name, seconds in milliseconds.items()},
    }


def _error_response(dialect: Dialect, error: BlitzError) -> Response:
    status, body = dialect.format_error(error)
    response = _json(body, status)
    if status in (429, 503):
        wait_s = 1.0 if error.retry_after_s is None else error.retry_after_s
        response.headers["retry-after"] = str(math.ceil(wait_s))
        response.headers["retry-after-ms"] = str(math.ceil(wait_s * 1000))
    return response


async def _answer_unrouted(request: Request, error: Exception) -> Response:
    """404 and 405 of paths that have no dialect, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    shape = {"message": error.detail, "type": "invalid_request_error", "param": None, "code": code}
    response = _json(orjson.dumps({"error": shape}), error.status_code)
    response.headers.update(error.headers or {})
    return response


def _json(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type=JSON)


def _names(cards: list[ModelCard]) -> str:
    return ", ".join(card.name for card in cards) or "none"


def _openapi(path: str, dialect: Dialect | None) -> dict[str, Any]:
    """What FastAPI cannot see, because bodies are read by msgspec."""
    extra: dict[str, Any] = {}
    if "{model}" in path:
        schema = {"type": "string"}
        extra["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": schema}]
    if dialect:
        _, components = msgspec.json.schema_components([dialect.Body])
        content = {"schema": components[dialect.Body.__name__]}
        extra["requestBody"] = {"required": True, "content": {JSON: content, wire.CONTENT_TYPE: content}}
    return extra
