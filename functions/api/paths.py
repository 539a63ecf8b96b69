"""Paths as clients write them: answered where it is plain what is meant, told the right one where not.

Never redirected, since many clients send a GET where a redirected POST should go. Does not know what is
at a path, nor dialects.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

MODEL_IN_PATH = "{model:model}"


class _ModelConvertor(StringConvertor):
    """A model's name in a path, with its slashes; a line's end is no end of it."""

    regex = "(?s:.+)"


register_url_convertor("model", _ModelConvertor())

_SLASHES = re.compile("/{2,}")
_SEARCHED_CHARACTERS = 200
"""In a longer path nobody looks for what it might be."""
_CLOSE = 0.75


class KnownPaths:
    """ASGI middleware: gives `app` a request at the path of `routes` that it means, from its root on.

    Double and trailing slashes are none, and what is said twice is said once, as where /v1 is both in a
    client's base URL and in its path. Stands before whatever goes by a path.
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
            return path  # as nearly all are, whether there is something or not
        return next((each for each in candidates if any(_at(self._routes, each))), path)


def allowed_methods(routes: Iterable[BaseRoute], path: str) -> list[str]:
    """The methods that there are at a path."""
    return sorted({method for route in _at(routes, path) for method in route.methods or ()})


def nearest_path(routes: Iterable[BaseRoute], path: str) -> str:
    """The path that somebody may have meant who asked for one that is not there; "" if none is near."""
    if len(path) > _SEARCHED_CHARACTERS:
        return ""
    public = [route for route in routes if isinstance(route, Route) and route.include_in_schema]
    parts = _normalise(f"/{path}").lower().split("/")[1:]
    ends = ["/" + "/".join(parts[begin:]) for begin in range(len(parts))]
    among = dict.fromkeys(route.path_format for route in public)
    exact = [[route.path_format for route in _at(public, end)] for end in ends]
    # An end of several parts, then what is spelt nearly so, then the last part alone.
    near = [*exact[:-1], difflib.get_close_matches(ends[0], among, 1, _CLOSE), exact[-1]]
    return next((found[0] for found in near if found), "")


def _at(routes: Iterable[BaseRoute], path: str) -> Iterator[Route]:
    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
    for route in routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            yield route


def _normalise(path: str) -> str:
    """Without double and trailing slashes; but below /docs/ a page would look for its files."""
    normalised = _SLASHES.sub("/", path).rstrip("/") or "/"
    return "/docs/" if normalised == "/docs" and path.endswith("/") else normalised


def _without_repetition(path: str) -> Iterator[str]:
    """/v1/v1/models -> /v1/models; for whatever the path begins with twice."""
    first = path[: path.find("/", 1) + 1]
    end = path.find(first, 1)
    if len(path) <= _SEARCHED_CHARACTERS and first and end > 0 and path.startswith(path[:end], end):
        yield path[end:]
