"""The public app: Starlette routes requests, FastAPI writes /openapi.json once somebody asks for it.

msgspec reads the bodies, so FastAPI cannot see their types: `describe_post` tells them. Does not know
how a request is handled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from functions.http.caller import Endpoint
from shared.context import preference
from shared.dialects.body import JSON, value_type
from shared.dialects.operations import OPERATIONS, Operation
from shared.wire import codec

_REFERENCE = "#/components/schemas/{name}"

ERRORS = {
    400: "Invalid request; the response names the field",
    401: "The key is missing or unknown",
    403: "The quota of the caller's files is used up",
    404: "No such model, file or batch",
    408: "The body arrived too slowly",
    409: "A bulk job's input changed while it was read",
    413: "The request exceeds a limit of bytes or tokens",
    415: "Unsupported content type or encoding",
    422: "Invalid request, in the dialect of Text Embeddings Inference",
    424: "The backend failed, in the dialect of Text Embeddings Inference",
    429: "Too many requests; see Retry-After",
    500: "A defect of this service",
    502: "The backend failed",
    503: "Temporarily unavailable; see Retry-After",
    504: "Deadline exceeded",
}
"""Every error status of every dialect; a test checks that."""


_PREFERENCE = {
    "name": preference.HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "enum": list(preference.DEVICES)},
    "description": "The backend to try first, if it has the model; by default the router decides",
}


class DescribedApp(Starlette):
    """A Starlette app whose routes are described in /openapi.json.

    Importing FastAPI takes as long as all else of a router's start, and no request for vectors needs it.
    """

    def __init__(self, title: str, version: str) -> None:
        super().__init__()
        self.router.redirect_slashes = False
        self._title, self._version = title, version
        self._described: list[tuple[str, Route, str, dict[str, Any]]] = []
        self._document: bytes | None = None
        self.serve("GET", "/openapi.json", self._openapi_json)

    def serve(
        self,
        method: str,
        path: str,
        endpoint: Endpoint,
        summary: str = "",
        described: dict[str, Any] | None = None,
    ) -> None:
        """Add a route; GET answers HEAD too. described: see `describe`; None: not in the document."""
        route = Route(path, endpoint, methods=[method], include_in_schema=described is not None)
        self.routes.append(route)
        if described is not None:
            self._described.append((method, route, summary, described))

    def openapi(self) -> dict[str, Any]:
        """The document. Takes a third of a second the first time in a process."""
        from fastapi import FastAPI

        writer = FastAPI(title=self._title, version=self._version, root_path_in_servers=False)
        for method, route, summary, described in self._described:
            writer.add_api_route(
                route.path,
                route.endpoint,
                methods=[method],
                summary=summary,
                name=f"{method} {route.path_format}",
                response_class=Response,
                response_model=None,
                openapi_extra=described,
            )
        document = writer.openapi()
        bodies = dict.fromkeys(each.body for each in OPERATIONS)
        _, schemas = msgspec.json.schema_components(bodies, ref_template=_REFERENCE)
        document["components"] = {"schemas": schemas}
        # Relative to the document: API Management or a proxy may add a prefix.
        document["servers"] = [{"url": "./"}]
        return document

    async def _openapi_json(self, request: Request) -> Response:
        if self._document is None:
            self._document = orjson.dumps(await asyncio.to_thread(self.openapi))
        return Response(self._document, media_type=JSON)


def describe_post(path: str, operations: Sequence[Operation]) -> dict[str, Any]:
    """An OpenAPI operation: the bodies that `path` accepts, and its responses."""
    bodies = tuple(dict.fromkeys(each.body for each in operations))
    references, _ = msgspec.json.schema_components(bodies, ref_template=_REFERENCE)
    schema = references[0] if len(references) == 1 else {"anyOf": list(references)}
    both = {JSON: {"schema": schema}, codec.CONTENT_TYPE: {"schema": schema}}
    return {
        "parameters": [
            _named_model("path" if "{model}" in path else "query"),
            *(_query_parameter(each.body, name) for each in operations for name in each.query),
            _PREFERENCE,
        ],
        "requestBody": {"required": True, "content": both},
        "responses": _responses({JSON: {}, codec.CONTENT_TYPE: {}}),
    }


def describe_get(media_type: str | None, *, model: str | None = None) -> dict[str, Any]:
    """An OpenAPI operation. media_type: None for an empty response. model: where it is named."""
    return {
        "parameters": [_named_model(model)] if model else [],
        "responses": _responses({media_type: {}} if media_type else {}),
    }


def describe(
    media_type: str,
    *,
    path: str = "",
    query: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """An OpenAPI operation of files and batches.

    path: name of its path parameter. query: parameter -> JSON type. body: media type -> schema.
    """
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": {"type": kind}}
        for name, kind in (query or {}).items()
    ]
    if path:
        parameters.append({"name": path, "in": "path", "required": True, "schema": {"type": "string"}})
    described = {"parameters": parameters, "responses": _responses({media_type: {}})}
    if body is not None:
        content = {kind: {"schema": schema} for kind, schema in body.items()}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _named_model(place: str) -> dict[str, Any]:
    return {
        "name": "model",
        "in": place,
        "required": place == "path",
        "schema": {"type": "string"},
        "description": "The model, if the body names none" if place == "query" else "The model",
    }


def _query_parameter(body: type[Any], name: str) -> dict[str, Any]:
    """The query parameter for a field of `body`, which may be empty."""
    kinds = {field.name: value_type(field.type) for field in msgspec.structs.fields(body)}
    kind = kinds[name]
    return {
        "name": name,
        "in": "query",
        "required": False,
        "schema": msgspec.json.schema(kind if kind is str else kind | Literal[""]),
        "description": "As in the body, which takes precedence",
    }


def _responses(content: dict[str, Any]) -> dict[str, Any]:
    """200 with `content`, and every error status."""
    answers: dict[str, Any] = {"200": {"description": "The answer"}}
    if content:
        answers["200"]["content"] = content
    for status, description in ERRORS.items():
        answers[str(status)] = {"description": description, "content": {JSON: {}}}
    return answers
