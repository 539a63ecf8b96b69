"""Keys at the router: who may call. Only their sha256 is known.

    $ python -m functions.keys                  a new key, for a caller; its hash, for the router
    $ echo MY_KEY | python -m functions.keys --stdin       the hash of a key that there is already

BLITZ_API_KEY_HASHES takes the hashes, with commas between: one key a caller, so that one can be
withdrawn alone. What a caller stores belongs to its key: files and batches lie in a folder that is
named by the hash's own hash, which tells neither. Does not know what a caller asks for, nor any backend.
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
"""Platforms that ask whether the process lives have no key. Everything else needs one."""


REFUSAL = (
    "send a valid key: as Authorization: Bearer KEY, api-key: KEY, x-functions-key: KEY or ?code=KEY"
)


_OWNER = "blitz.owner"


class RequireKey:
    """ASGI middleware: passes on what brings a key whose sha256 (hex) is in `hashes`, answers 401 else.

    What is passed on has an owner, see `owner_of`. It stands before routing, so that without a key no
    path, and no error, looks unlike another.
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
        """Of the first known key of the request; "" if there is none.

        Compares with every hash, in constant time each: how long it takes tells nothing of any.
        """
        found = ""
        for key in _keys_in(HTTPConnection(scope)):
            digest = hashlib.sha256(key.encode()).digest()
            for expected, owner in self._owners.items():
                if hmac.compare_digest(digest, expected):
                    found = found or owner
        return found


def owner_of(scope: Scope) -> str:
    """Whose a request's files and batches are: its key's `owner_name`; "" where no keys are known."""
    return str(scope.get(_OWNER, ""))


def owner_name(key_hash: str) -> str:
    """16 hex digits, from which nobody finds the key or its hash (hex); another key's are others."""
    return hashlib.sha256(bytes.fromhex(key_hash)).hexdigest()[:16]


def _keys_in(request: HTTPConnection) -> Iterator[str]:
    """Where clients of OpenAI, Azure OpenAI and Azure Functions put their keys."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    api_key, functions_key = (request.headers.get(name, "") for name in ("api-key", "x-functions-key"))
    for key in (bearer, api_key, functions_key, request.query_params.get("code", "")):
        if key:
            yield key


def _refusal(path: str) -> Response:
    """401 in the shape of the path's dialect; OpenAI's where there is none."""
    status, body = error_format_at(path)(Unauthorized(REFUSAL))
    return Response(body, status, {"www-authenticate": "Bearer"}, JSON)
