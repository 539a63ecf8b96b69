"""Describes the routes for /openapi.json. msgspec reads the bodies, so FastAPI cannot see their types.

Does not know how a request is handled.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

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


class _PlainRoute(APIRoute):
    """Calls its endpoint with the request, without FastAPI's parameter parsing."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


class DescribedApp(FastAPI):
    """FastAPI for routing and /openapi.json only, with the schemas that `describe_post` refers to.

    Its other per-request work would cost an eighth of the Python time of a short text.
    """

    def __init__(self, **options: Any) -> None:
        # functions.http.tracing observes requests.
        super().__init__(
            telemetry={"tracing": False, "metrics": False, "logs": False},
            root_path_in_servers=False,
            **options,
        )
        self.router.route_class = _PlainRoute

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        bodies = dict.fromkeys(each.body for each in OPERATIONS)
        _, schemas = msgspec.json.schema_components(bodies, ref_template=_REFERENCE)
        document["components"] = {"schemas": schemas}
        # Relative to the document: API Management or a proxy may add a prefix.
        document["servers"] = [{"url": "./"}]
        return document


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
    """The query parameter for a field of `body`."""
    kinds = {field.name: value_type(field.type) for field in msgspec.structs.fields(body)}
    return {
        "name": name,
        "in": "query",
        "required": False,
        "schema": msgspec.json.schema(kinds[name]),
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
