"""Public HTTP: read a body in a client's dialect, call a backend, answer in the same dialect.

Does not know batches or where the backend is; dialects know the shapes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from functions.caller import (
    LARGE_BODY_BYTES,
    Endpoint,
    answering,
    off_loop_if,
    read_body,
    while_connected,
)
from functions.keys import RequireKey
from functions.observed import Observed, start_export
from functions.openapi import DescribedApp, describe_get, describe_post
from shared import telemetry, wire
from shared.contracts import (
    EmbedRequest,
    EmbedResult,
    ModelCard,
    ModelState,
    PredictRequest,
    RerankRequest,
    RerankResult,
    Result,
    texts_of,
)
from shared.contracts import Request as Asked
from shared.dialects import openai, tei
from shared.dialects.body import JSON, decode_body, read_marks
from shared.dialects.operations import PATHS, FormatError, Operation, choose, operations_at
from shared.errors import BlitzError, InvalidInput, UnknownModel
from shared.manifest import Device, Task
from shared.settings import Settings
from shared.telemetry import Telemetry

if TYPE_CHECKING:
    import azure.functions as func

    from functions.batches import Batches
    from shared.backend_client import Backend
    from shared.catalogue import Catalogue
    from shared.dispatch import Dispatcher

VERSION = "0.1.0"

# More than this is coded in a thread, so that the event loop goes on between the steps. One call of
# orjson keeps the GIL (about 11 ms for 1,024 x 384 floats): encoding chunks of rows would halve that
# pause, and was measured to take 40 % longer in all.
LARGE_RESULT_FLOATS = 64 * 1024


class Endpoints:
    """One method per kind of route; each raises BlitzError, `answering` makes that a response."""

    def __init__(
        self, settings: Settings, backend: Backend, catalogue: Catalogue, metrics: Telemetry
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._catalogue = catalogue
        self._metrics = metrics

    def answering(self, format_error: FormatError, endpoint: Endpoint) -> Endpoint:
        """`endpoint` within the deadline, its errors in a dialect's shape and no other."""
        respond = partial(_error_response, format_error)
        return answering(endpoint, respond, self._metrics, self._settings.request_timeout_s)

    def posting(self, operations: Sequence[Operation]) -> Endpoint:
        """A path's POST: whichever of `operations` the body is meant for."""

        async def post(request: Request) -> Response:
            operation = operations[-1]

            async def answer(request: Request) -> Response:
                nonlocal operation
                started = time.perf_counter()
                data = await read_body(request, self._settings.max_body_bytes)
                if len(operations) > 1:
                    read = partial(read_marks, data, request.headers.get("content-type", ""))
                    operation = choose(operations, await off_loop_if(len(data) > LARGE_BODY_BYTES, read))
                return await self._run(request, operation, data, started)

            # Anew for each request: in whose shape an error is told depends on the body.
            return await self.answering(lambda error: operation.format_error(error), answer)(request)

        return post

    async def _run(
        self, request: Request, operation: Operation, data: bytes, started: float
    ) -> Response:
        """Decode, ask the backend, format. started: a perf_counter."""
        decode = partial(decode_body, data, request.headers.get("content-type", ""), operation.body)
        body = await off_loop_if(len(data) > LARGE_BODY_BYTES, decode)
        named = request.path_params.get("model") or body.model or request.query_params.get("model")
        model = named or (await self._default_card(operation.task)).name
        asked = operation.request_from(body, model=model, settings=self._settings)
        inputs = len(texts_of(asked))
        self._metrics.request_arrived(inputs)
        result = await while_connected(request, self._ask(asked))
        packed = _accepts_msgpack(request)
        encode = operation.format_result_msgpack if packed else operation.format_result
        content = await off_loop_if(_is_large(result), partial(encode, result, body))
        total_s = time.perf_counter() - started
        self._metrics.request_succeeded(
            model=result.model,
            inputs=inputs,
            tokens=result.total_tokens,
            duration_s=total_s,
            timings=result.timings,
        )
        media_type = wire.CONTENT_TYPE if packed else JSON
        return Response(content, 200, _headers(asked, result, total_s), media_type)

    async def models(self, request: Request) -> Response:
        return _json(openai.format_models(await self._cards()))

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
            self._metrics.said_ready(False)
            return _json(orjson.dumps({"ready": False, "reason": error.message, "models": []}), 503)
        ready = is_ready(states, self._settings.warm_models)
        self._metrics.said_ready(ready)
        return _json(orjson.dumps({"ready": ready, "models": states}), 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.render(), media_type=telemetry.CONTENT_TYPE)

    async def _ask(self, asked: Asked) -> Result:
        match asked:
            case EmbedRequest():
                return await self._backend.embed(asked)
            case RerankRequest():
                return await self._backend.rerank(asked)
            case PredictRequest():
                return await self._backend.predict(asked)

    async def _cards(self) -> list[ModelCard]:
        """One card a model: the CPU's, where it is published for both."""
        cards = sorted(await self._catalogue.cards(), key=lambda card: card.device, reverse=True)
        return sorted({card.name: card for card in cards}.values(), key=lambda card: card.name)

    async def _card(self, name: str) -> ModelCard:
        cards = await self._cards()
        for card in cards:
            if card.name == name:
                return card
        raise UnknownModel(f"there is no model of that name; there are: {_names(cards)}", field="model")

    async def _default_card(self, task: Task | None = None) -> ModelCard:
        """The card of the model that a request gets when it names none.

        That of the settings, else the only one there is, else the only one for `task`.
        """
        if self._settings.default_model:
            return await self._card(self._settings.default_model)
        cards = await self._cards()
        for candidates in (cards, [card for card in cards if card.task == task]):
            if len(candidates) == 1:
                return candidates[0]
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


def create_app(
    settings: Settings,
    backend: Backend,
    catalogue: Catalogue,
    metrics: Telemetry = telemetry.PROCESS,
    batches: Batches | None = None,
) -> FastAPI:
    """The public ASGI app over `backend`. Starts and stops nothing: no lifespan.

    batches: what /v1/files and /v1/batches are, where there is a bulk storage.
    """
    app = DescribedApp(title="BlitzEmbedding", version=VERSION, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _answer_unrouted)
    if settings.api_key_hashes:
        app.add_middleware(RequireKey, hashes=settings.api_key_hashes, metrics=metrics)
    app.add_middleware(Observed)  # the last one added is the outermost: refusals are seen too
    endpoints = Endpoints(settings, backend, catalogue, metrics)

    def add(method: str, path: str, summary: str, endpoint: Endpoint, described: dict[str, Any]) -> None:
        app.add_api_route(
            path,
            endpoint,
            methods=[method],
            summary=summary,
            name=f"{method} {path}",
            response_class=Response,
            response_model=None,
            openapi_extra=described,
        )

    for path in PATHS:
        operations = operations_at(path)
        summary = "; or ".join(each.summary for each in operations)
        add("POST", path, summary, endpoints.posting(operations), describe_post(path, operations))
    models, info = openai.format_error, tei.format_error
    for path, summary, format_error, endpoint, described in (
        ("/v1/models", "The models there are", models, endpoints.models, describe_get(JSON)),
        ("/v1/models/{model}", "One model", models, endpoints.model, describe_get(JSON, model="path")),
        ("/info", "One model (TEI)", info, endpoints.info, describe_get(JSON, model="query")),
        ("/health", "Whether this process lives", info, endpoints.health, describe_get(None)),
        ("/ready", "The state of each model", info, endpoints.ready, describe_get(JSON)),
        ("/metrics", "Prometheus metrics", info, endpoints.metrics, describe_get("text/plain")),
    ):
        add("GET", path, summary, endpoints.answering(format_error, endpoint), described)
    for route in batches.routes() if batches else ():
        answer = endpoints.answering(openai.format_error, route.endpoint)
        add(route.method, route.path, route.summary, answer, route.described)
    return app


def function_app(settings: Settings) -> func.AsgiFunctionApp:
    """The router as an Azure Functions app; its backends are where the settings say."""
    # Imported here, because each is slow to import and only one deployment or the other needs it.
    import azure.functions as func

    start_export(settings)
    dispatcher, catalogue = connect(settings)
    asgi = create_app(settings, dispatcher, catalogue, batches=connect_batches(settings))
    app = func.AsgiFunctionApp(app=asgi, http_auth_level=func.AuthLevel.ANONYMOUS)
    if settings.gpu_backend_url and settings.gpu_ahead_s:
        from functions import warmup

        warm_up = warmup.connect(settings, dispatcher.wake_gpu)
        dispatcher.watch_gpu_work(warm_up.count)
        warmup.register(app, warm_up)
    return app


def connect(settings: Settings, here: Backend | None = None) -> tuple[Dispatcher, Catalogue]:
    """What the router calls and what it knows of models, from settings. Raises Misconfigured.

    here: the CPU backend of this process, if somebody else uses it too.
    """
    from shared.backend_auth import authorization_of
    from shared.backend_client import HttpBackend
    from shared.catalogue import Catalogue
    from shared.dispatch import Dispatcher
    from shared.model_store import open_store
    from shared.routing import policy_of

    catalogue = Catalogue(open_store(settings), ("cpu", "gpu"))
    timeout_s, authorize = settings.request_timeout_s, authorization_of(settings)
    urls: dict[Device, str] = {"cpu": settings.cpu_backend_url, "gpu": settings.gpu_backend_url}
    remote = {
        device: HttpBackend(url, timeout_s, authorize=authorize) for device, url in urls.items() if url
    }
    backends: dict[Device, Backend] = {**remote}
    if "cpu" not in remote:
        if here is None:
            from functions.cpu import create_inference

            here = create_inference(settings)
        backends["cpu"] = here
    dispatcher = Dispatcher(
        backends,
        catalogue,
        policy_of(settings),
        chunk_texts=settings.chunk_texts,
        concurrency=dict.fromkeys(remote, settings.backend_concurrency),
        max_queue_s=settings.max_queue_s,
        max_request_tokens=settings.max_request_tokens,
        timeout_s=timeout_s,
        gpu_idle_s=settings.gpu_idle_s,
        wake_gpu=remote["gpu"].wake if "gpu" in remote else None,
    )
    return dispatcher, catalogue


def connect_batches(settings: Settings) -> Batches | None:
    """None where no bulk storage is named. Raises Misconfigured."""
    if not settings.storage and not settings.storage_connection_string:
        return None
    from functions import batches

    return batches.connect(settings)


def _accepts_msgpack(request: Request) -> bool:
    accepted = request.headers.get("accept", "").lower().split(",")
    return any(item.partition(";")[0].strip() == wire.CONTENT_TYPE for item in accepted)


def _is_large(result: Result) -> bool:
    return isinstance(result, EmbedResult) and result.vectors.size > LARGE_RESULT_FLOATS


def _headers(asked: Asked, result: Result, total_s: float) -> dict[str, str]:
    """TEI's, in whole milliseconds; and what a reranker's score is."""
    timings = result.timings
    milliseconds = {
        "x-compute-time": total_s,
        "x-total-time": total_s,
        "x-tokenization-time": timings.tokenization_s,
        "x-queue-time": timings.queue_s,
        "x-inference-time": timings.inference_s,
    }
    headers = {
        "x-compute-type": result.device,
        "x-compute-characters": str(_characters(asked)),
        "x-compute-tokens": str(result.total_tokens),
        **{name: str(round(seconds * 1000)) for name, seconds in milliseconds.items()},
    }
    if isinstance(result, RerankResult):
        headers["x-rerank-method"] = result.method
    return headers


def _characters(asked: Asked) -> int:
    """Of all texts; ids have none."""
    texts = [asked.query, *asked.documents] if isinstance(asked, RerankRequest) else asked.inputs
    return sum(
        len(part)
        for text in texts
        for part in ((text,) if isinstance(text, str) else text)
        if isinstance(part, str)
    )


def _error_response(format_error: FormatError, error: BlitzError) -> Response:
    status, body = format_error(error)
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
