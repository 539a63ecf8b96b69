"""API keys of the router. It stores only their sha256.

    $ python -m functions.keys add search --expires 90d    a new key of the caller `search`, by name
    $ python -m functions.keys                  a new key, for a caller; its hash, for the router
    $ echo MY_KEY | python -m functions.keys --stdin       the hash of a key that there is already

BLITZ_API_KEYS names a document of callers, see key_list; BLITZ_API_KEY_HASHES takes hashes, with commas
between: one key a caller, so that one can be withdrawn alone. What a caller stores belongs to its owner:
files and batches lie in a folder that is named by the hash of its first key's hash, which tells neither.
Does not know what a caller asks for, nor any backend, nor where keys are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from functions.api.known_keys import KnownKeys
from functions.api.responses import error_response
from shared.dialects.operations import error_format_at
from shared.errors import BlitzError, Unauthorized
from shared.observability.metrics import Telemetry

OPEN_PATH = "/health"
"""Liveness probes of platforms carry no key. Every other path needs one."""


REFUSAL = (
    "send a valid key: as Authorization: Bearer KEY, api-key: KEY, x-functions-key: KEY or ?code=KEY"
)


_KNOWN = "blitz.key"


class RequireKey:
    """ASGI middleware: passes on what brings a key that `keys` knows and that counts, answers 401 else.

    What is passed on has an owner and a name, see `owner_of` and `caller_of`. It stands before routing,
    so that without a key no path, and no error, looks unlike another; nor does a key that has expired.
    """

    def __init__(self, app: ASGIApp, keys: KnownKeys, metrics: Telemetry) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == OPEN_PATH:
            await self._app(scope, receive, send)
            return
        sent = (hashlib.sha256(key.encode()).digest() for key in _keys_in(HTTPConnection(scope)))
        try:
            known = self._keys.find(sent)
            if known is None:
                raise Unauthorized(REFUSAL)
        except BlitzError as error:
            self._metrics.request_failed(error.code)
            await _refusal(scope["path"], error)(scope, receive, send)
            return
        scope[_KNOWN] = known
        await self._app(scope, receive, send)


def owner_of(scope: Scope) -> str:
    """Whose a request's files and batches are; "" where no keys are known."""
    return scope[_KNOWN].owner if _KNOWN in scope else ""


def caller_of(scope: Scope) -> str:
    """The name of a request's caller in metrics; "" where no keys are known."""
    return scope[_KNOWN].name if _KNOWN in scope else ""


def _keys_in(request: HTTPConnection) -> Iterator[str]:
    """Keys, from where clients of OpenAI, Azure OpenAI and Azure Functions put them."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    api_key, functions_key = (request.headers.get(name, "") for name in ("api-key", "x-functions-key"))
    for key in (bearer, api_key, functions_key, request.query_params.get("code", "")):
        if key:
            yield key


def _refusal(path: str, error: BlitzError) -> Response:
    """In the shape of the path's dialect; OpenAI's where there is none."""
    response = error_response(error_format_at(path), error)
    if error.status == Unauthorized.status:
        response.headers["www-authenticate"] = "Bearer"
    return response
