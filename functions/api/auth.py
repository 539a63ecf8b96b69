"""API keys of the router. It stores only their sha256.

    $ python -m functions.keys                             a new key and its hash
    $ echo MY_KEY | python -m functions.keys --stdin       the hash of an existing key

BLITZ_API_KEY_HASHES holds the hashes, separated by commas. Give each caller its own key, so that each
can be revoked alone. Files and batches belong to the key that stored them: their folder is named by the
hash of the key's hash, which reveals neither. Does not know requests or backends.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Sequence

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.dialects.body import JSON
from shared.dialects.operations import error_format_at
from shared.errors import Unauthorized
from shared.observability.metrics import Telemetry

OPEN_PATH = "/health"
"""Liveness probes of platforms carry no key. Every other path needs one."""


REFUSAL = (
    "send a valid key: as Authorization: Bearer KEY, api-key: KEY, x-functions-key: KEY or ?code=KEY"
)


_OWNER = "blitz.owner"


class RequireKey:
    """ASGI middleware: requires a key whose sha256 (hex) is in `hashes`; answers 401 otherwise.

    Sets the owner of each request, see `owner_of`. It runs before routing, so that without a key all
    paths and errors look alike.
    """

    def __init__(self, app: ASGIApp, hashes: Sequence[str], metrics: Telemetry) -> None:
        self._app = app
        self._owners = {bytes.fromhex(each): owner_name(each) for each in hashes}
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == OPEN_PATH:
            await self._app(scope, receive, send)
            return
        if owner := self._owner(scope):
            scope[_OWNER] = owner
            await self._app(scope, receive, send)
            return
        self._metrics.request_failed(Unauthorized.code)
        await _refusal(scope["path"])(scope, receive, send)

    def _owner(self, scope: Scope) -> str:
        """The owner of the request's first known key; "" if there is none.

        Compares with every hash in constant time, so that timing reveals nothing.
        """
        found = ""
        for key in _keys_in(HTTPConnection(scope)):
            digest = hashlib.sha256(key.encode()).digest()
            for expected, owner in self._owners.items():
                if hmac.compare_digest(digest, expected):
                    found = found or owner
        return found


def owner_of(scope: Scope) -> str:
    """The owner of a request's files and batches: its key's `owner_name`; "" without key hashes."""
    return str(scope.get(_OWNER, ""))


def owner_name(key_hash: str) -> str:
    """16 hex digits, unique to the key, that reveal neither the key nor its hash (hex)."""
    return hashlib.sha256(bytes.fromhex(key_hash)).hexdigest()[:16]


def _keys_in(request: HTTPConnection) -> Iterator[str]:
    """Keys, from where clients of OpenAI, Azure OpenAI and Azure Functions put them."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    api_key, functions_key = (request.headers.get(name, "") for name in ("api-key", "x-functions-key"))
    for key in (bearer, api_key, functions_key, request.query_params.get("code", "")):
        if key:
            yield key


def _refusal(path: str) -> Response:
    """401 in the dialect of the path; OpenAI's at unknown paths."""
    status, body = error_format_at(path)(Unauthorized(REFUSAL))
    return Response(body, status, {"www-authenticate": "Bearer"}, JSON)
