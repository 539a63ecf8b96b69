"""/docs: Swagger UI served by this process: works offline, and loads no foreign scripts.

Does not know the routes: the page reads /openapi.json.
"""

from __future__ import annotations

import secrets
from importlib.resources import files
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Scope

from functions.api.confidential import Confidential
from functions.api.openapi import DescribedApp

_FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
"""The files of the package fastapi-swagger that the page needs; its code is not used."""


_POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Swagger UI needs inline styles and data: images for its arrows. It needs no eval."""


def add_docs_page(app: DescribedApp) -> None:
    """Serve the page and its files.

    Call it before adding the key check, so that refusals at these paths look like all others.
    """
    app.add_middleware(Confidential, applies=_is_documentation)
    for path, endpoint in (("/docs", _page), ("/docs/{name}", _file)):
        app.serve("GET", path, endpoint)


def _is_documentation(scope: Scope) -> bool:
    path: str = scope["path"]
    return path in ("/docs", "/openapi.json") or path.startswith("/docs/")


async def _page(request: Request) -> Response:
    from fastapi.openapi.docs import get_swagger_ui_html  # see DescribedApp

    # Relative URLs work behind a gateway's prefix. The key goes into the query, because a browser sends
    # none in a header.
    code = request.query_params.get("code")
    key = f"?{urlencode({'code': code})}" if code else ""
    script, style, icon = (f"docs/{name}{key}" for name in _FILES)
    page = get_swagger_ui_html(
        openapi_url=f"openapi.json{key}",
        title="BlitzEmbedding",
        swagger_js_url=script,
        swagger_css_url=style,
        swagger_favicon_url=icon,
    )
    nonce = secrets.token_urlsafe(16)
    content = bytes(page.body).replace(b"<script>", f'<script nonce="{nonce}">'.encode())
    policy = _POLICY.format(nonce=nonce)
    return HTMLResponse(content, headers={"content-security-policy": policy})


async def _file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _FILES:
        raise HTTPException(404)
    content = (files("fastapi_swagger") / "resources" / name).read_bytes()
    return Response(content, media_type=_FILES[name])
