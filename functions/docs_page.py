"""/docs: Swagger UI from this very process, for networks without the internet, and no foreign scripts.

Does not know the routes; the page reads /openapi.json.
"""

from __future__ import annotations

from importlib.resources import files
from urllib.parse import urlencode

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException

_FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
"""Those of the package fastapi-swagger that the page needs; its code is not used."""


def add_docs_page(app: FastAPI) -> None:
    """Serve the page and its files. `app` is to have no docs_url of its own."""
    app.add_api_route("/docs", _page, include_in_schema=False)
    app.add_api_route("/docs/{name}", _file, include_in_schema=False)


async def _page(request: Request) -> Response:
    # Relative, so that it works behind a gateway's prefix too. A browser cannot send a key in a header.
    code = request.query_params.get("code")
    key = f"?{urlencode({'code': code})}" if code else ""
    script, style, icon = (f"docs/{name}{key}" for name in _FILES)
    return get_swagger_ui_html(
        openapi_url=f"openapi.json{key}",
        title="BlitzEmbedding",
        swagger_js_url=script,
        swagger_css_url=style,
        swagger_favicon_url=icon,
    )


async def _file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _FILES:
        raise HTTPException(404)
    content = (files("fastapi_swagger") / "resources" / name).read_bytes()
    return Response(content, media_type=_FILES[name])
