"""Normalises request paths as clients write them, and suggests the nearest route for unknown ones.

It rewrites instead of redirecting, because many clients repeat a redirected POST as a GET. Does not know
what a route does, or dialects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

MODEL_IN_PATH = "{model:model}"


class _ModelConvertor(StringConvertor):
    """A model's name in a path; it may contain slashes and line breaks."""

    regex = "(?s:.+)"


register_url_convertor("model", _ModelConvertor())

_SLASHES = re.compile("/{2,}")
_SEARCHED_CHARACTERS = 200
"""Longer paths are not matched against routes, to bound the work."""
_CLOSE = 0.75


class KnownPaths:
    """ASGI middleware: rewrites a request's path to the one of `routes` that it means.

    Removes the root path, double and trailing slashes, and a repeated prefix: /v1/v1, where a client has
    /v1 in its base URL and in its path. Runs before everything that depends on the path.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, root = scope["path"], scope.get("root_path", "").rstrip("/")
            if root and path.startswith(root) and path[len(root) :][:1] in ("", "/"):
                path = path[len(root) :]
            if (meant := self._resolve(path)) != scope["path"]:
                scope = {**scope, "path": meant, "root_path": ""}
        await self._app(scope, receive, send)

    def _resolve(self, path: str) -> str:
        normalised = _normalise(path)
        candidates = [normalised, *_without_repetition(normalised)]
        if candidates == [path]:
            return path  # the common case
        return next((each for each in candidates if any(_at(self._routes, each))), path)


def allowed_methods(routes: Iterable[BaseRoute], path: str) -> list[str]:
    """The methods that the routes at a path accept."""
    return sorted({method for route in _at(routes, path) for method in route.methods or ()})


def nearest_path(routes: Iterable[BaseRoute], path: str) -> str:
    """The route most similar to an unknown path; "" if none is similar."""
    import difflib  # only a path that is not there needs it

    if len(path) > _SEARCHED_CHARACTERS:
        return ""
    public = [route for route in routes if isinstance(route, Route) and route.include_in_schema]
    parts = _normalise(f"/{path}").lower().split("/")[1:]
    ends = ["/" + "/".join(parts[begin:]) for begin in range(len(parts))]
    among = dict.fromkeys(route.path_format for route in public)
    exact = [[route.path_format for route in _at(public, end)] for end in ends]
    # A suffix of several segments, then similar spellings, then the last segment alone.
    near = [*exact[:-1], difflib.get_close_matches(ends[0], among, 1, _CLOSE), exact[-1]]
    return next((found[0] for found in near if found), "")


def _at(routes: Iterable[BaseRoute], path: str) -> Iterator[Route]:
    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
    for route in routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            yield route


def _normalise(path: str) -> str:
    """Without double and trailing slashes. /docs/ stays: its page has relative URLs."""
    normalised = _SLASHES.sub("/", path).rstrip("/") or "/"
    return "/docs/" if normalised == "/docs" and path.endswith("/") else normalised


def _without_repetition(path: str) -> Iterator[str]:
    """/v1/v1/models -> /v1/models, for any repeated prefix."""
    first = path[: path.find("/", 1) + 1]
    end = path.find(first, 1)
    if len(path) <= _SEARCHED_CHARACTERS and first and end > 0 and path.startswith(path[:end], end):
        yield path[end:]
