"""GET / for browsers: a page to look at the models, try them and watch the service.

Serves the static files of functions/api/page. They call the public routes as any client does, with the
key that a visitor types; they hold no secret, so they need no key themselves. Does not know the routes.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER = Path(__file__).parent / "page"
START = "index.html"
BEGIN = "/page/"
"""Of the paths of all files but START, which is at /."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_HEADERS = {
    "cache-control": "no-cache",  # asked again each time, and answered 304 while it is the same
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "vary": "Accept",
}


class _File(msgspec.Struct, frozen=True):
    content: bytes
    media_type: str
    etag: str


class StartPage:
    """ASGI middleware: answers browsers at / and at the page's files, passes on everything else.

    It stands before the key check: a browser sends no key until its visitor has typed one into the page.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        file = _asked_for(scope)
        answer = self._app if file is None else _response(scope, file)
        await answer(scope, receive, send)


def _asked_for(scope: Scope) -> _File | None:
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
        return None
    path: str = scope["path"]
    if path == "/":
        return _files()[START] if _accepts_html(scope) else None
    name = path.removeprefix(BEGIN)
    return _files().get(name) if name not in (path, START) else None


def _accepts_html(scope: Scope) -> bool:
    """Whether it is a browser: other clients accept anything, or JSON, and are told of POST /."""
    accepted = ",".join(Headers(scope=scope).getlist("accept")).lower().split(",")
    return any(item.partition(";")[0].strip() == "text/html" for item in accepted)


@cache
def _files() -> dict[str, _File]:
    """By name. Read once, with the first visitor: most processes have none."""
    files = {}
    for path in sorted(FOLDER.iterdir()):
        content = path.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        files[path.name] = _File(content, _TYPES[path.suffix], etag)
    return files


def _response(scope: Scope, file: _File) -> Response:
    headers = {**_HEADERS, "etag": file.etag}
    if Headers(scope=scope).get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
