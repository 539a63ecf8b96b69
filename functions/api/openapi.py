"""What /openapi.json says of the routes, which FastAPI cannot see: msgspec reads the bodies.

Does not know how a request is answered.
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
    400: "The request is wrong; the answer names the field",
    401: "No key, or none that is known",
    403: "The caller's files are as many, or as large, as they may be",
    404: "There is no such model, file or batch",
    408: "The body came too slowly",
    409: "A bulk job's input changed while it was read",
    413: "More bytes or tokens than a request may have",
    415: "The content type is not one that is read",
    422: "The request is wrong, as Text Embeddings Inference says it",
    424: "The backend failed, as Text Embeddings Inference says it",
    429: "Too much work is waiting; see Retry-After",
    500: "A defect of this service",
    502: "The backend failed",
    503: "Not now; see Retry-After",
    504: "It took too long",
}
"""Every status that a dialect gives an error; a test holds that."""


_PREFERENCE = {
    "name": preference.HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "enum": list(preference.DEVICES)},
    "description": "The backend to try first, if it has the model; otherwise the router decides",
}


class _PlainRoute(APIRoute):
    """Its endpoint takes the request and gives the response: there are no parameters to work out."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


class DescribedApp(FastAPI):
    """FastAPI with the schemas that `describe_post` refers to; it routes, describes, and does no more.

    What else it does with each request is an eighth of the Python that a short text costs.
    """

    def __init__(self, **options: Any) -> None:
        # What is told of requests, functions.http.tracing tells.
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
        # Where the document is: API Management, or a proxy, may have put everything below a prefix.
        document["servers"] = [{"url": "./"}]
        return document


def describe_post(path: str, operations: Sequence[Operation]) -> dict[str, Any]:
    """An OpenAPI operation: the bodies that `path` takes, what may come back."""
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
    """An OpenAPI operation. media_type: None if nothing comes back. model: where it is named."""
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

    path: the parameter in it. query: parameters -> their JSON types. body: media types -> their schemas.
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
        "description": "The model, where the body names none" if place == "query" else "The model",
    }


def _query_parameter(body: type[Any], name: str) -> dict[str, Any]:
    """A field of `body` that the query string may give."""
    kinds = {field.name: value_type(field.type) for field in msgspec.structs.fields(body)}
    return {
        "name": name,
        "in": "query",
        "required": False,
        "schema": msgspec.json.schema(kinds[name]),
        "description": "As in the body, where that does not say",
    }


def _responses(content: dict[str, Any]) -> dict[str, Any]:
    """200 with `content`, and every error."""
    answers: dict[str, Any] = {"200": {"description": "The answer"}}
    if content:
        answers["200"]["content"] = content
    for status, description in ERRORS.items():
        answers[str(status)] = {"description": description, "content": {JSON: {}}}
    return answers
