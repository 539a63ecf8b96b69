"""The public ASGI app: middleware in order, and routes. Does not know what a route does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from functions.api.auth import RequireKey
from functions.api.build import connect as connect
from functions.api.build import connect_batches as connect_batches
from functions.api.confidential import Confidential, has_key_in_address
from functions.api.cors import Cors
from functions.api.docs_page import add_docs_page
from functions.api.endpoints import Endpoints
from functions.api.known_keys import KnownKeys
from functions.api.openapi import DescribedApp, describe, describe_get, describe_post
from functions.api.paths import MODEL_IN_PATH, KnownPaths
from functions.api.responses import answer_unrouted, error_response
from functions.api.start_page import StartPage
from functions.http.admission import Admission, Admitted
from functions.http.caller import Endpoint
from functions.http.framing import RejectAmbiguousLength
from functions.http.request_ids import RequestIds
from functions.http.tracing import Traced
from shared import __version__
from shared.dialects import ollama, openai, tei
from shared.dialects.body import JSON
from shared.dialects.operations import PATHS, error_format_at, is_operation, operations_at
from shared.errors import BlitzError, Misconfigured
from shared.observability import metrics
from shared.observability.metrics import Telemetry
from shared.settings import Settings

if TYPE_CHECKING:
    from functions.api.batches import Batches
    from shared.backends.base import Backend
    from shared.models.catalogue import Catalogue


def create_app(
    settings: Settings,
    backend: Backend,
    catalogue: Catalogue,
    metrics: Telemetry = metrics.PROCESS,
    batches: Batches | None = None,
    keys: KnownKeys | None = None,
) -> DescribedApp:
    """The public ASGI app over `backend`. No lifespan: it starts and stops nothing.

    batches: the endpoints of /v1/files and /v1/batches; None without a bulk storage. keys: see
    connect_keys; None: the hashes in api_key_hashes, and no document.
    """
    if keys is None:
        if settings.api_keys:  # not open for want of the document
            raise Misconfigured("BLITZ_API_KEYS is set, and its document was not read: see connect_keys")
        keys = KnownKeys(settings.api_key_hashes, None, metrics) if settings.api_key_hashes else None
    app = DescribedApp("BlitzEmbedding", __version__)
    add_docs_page(app)
    app.add_exception_handler(HTTPException, answer_unrouted)
    admission = Admission(max_requests=settings.max_requests, max_bytes=settings.max_pending_bytes)
    app.add_middleware(
        Admitted,
        admission=admission,
        backend=backend,
        asks_backend=is_operation,
        refuse=_refuse,
        metrics=metrics,
    )
    if keys is not None:
        app.add_middleware(RequireKey, keys=keys, metrics=metrics)
    if settings.page:
        app.add_middleware(StartPage)
    app.add_middleware(RejectAmbiguousLength, refuse=_refuse, metrics=metrics)
    app.add_middleware(Confidential, applies=has_key_in_address)
    app.add_middleware(Traced)
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins)
    app.add_middleware(KnownPaths, routes=app.routes)
    # The last one added is the outermost: refusals get a request id too.
    app.add_middleware(RequestIds, refuse=_refuse)
    endpoints = Endpoints(settings, backend, catalogue, metrics)

    def add(method: str, path: str, summary: str, endpoint: Endpoint, described: dict[str, Any]) -> None:
        app.serve(method, path.replace("{model}", MODEL_IN_PATH), endpoint, summary, described)

    for path in PATHS:
        operations = operations_at(path)
        summary = "; or ".join(each.summary for each in operations)
        add("POST", path, summary, endpoints.post_endpoint(operations), describe_post(path, operations))
    models, info, tags = openai.format_error, tei.format_error, ollama.format_error
    _, schemas = msgspec.json.schema_components((ollama.ShowBody,))
    show = describe(JSON, body={JSON: schemas["ShowBody"]})
    for method, path, summary, format_error, endpoint, described in (
        ("GET", "/v1/models", "List models", models, endpoints.models, describe_get(JSON)),
        (
            "GET",
            "/v1/models/{model}",
            "One model",
            models,
            endpoints.model,
            describe_get(JSON, model="path"),
        ),
        ("GET", "/api/tags", "List models (Ollama)", tags, endpoints.tags, describe_get(JSON)),
        ("POST", "/api/show", "One model (Ollama)", tags, endpoints.show, show),
        ("GET", "/api/version", "Ollama's version", tags, endpoints.version, describe_get(JSON)),
        ("GET", "/info", "One model (TEI)", info, endpoints.info, describe_get(JSON, model="query")),
        ("GET", "/health", "Liveness of this process", info, endpoints.health, describe_get(None)),
        ("GET", "/ready", "The state of each model", info, endpoints.ready, describe_get(JSON)),
        ("GET", "/metrics", "Prometheus metrics", info, endpoints.metrics, describe_get("text/plain")),
    ):
        add(method, path, summary, endpoints.wrap(format_error, endpoint), described)
    for route in batches.routes() if batches else ():
        answer = endpoints.wrap(openai.format_error, route.endpoint)
        add(route.method, route.path, route.summary, answer, route.described)
    return app


def _refuse(path: str, error: BlitzError) -> Response:
    """An error response in the dialect of the path."""
    return error_response(error_format_at(path), error)
