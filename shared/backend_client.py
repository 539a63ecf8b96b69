"""What the router calls: a backend, in this process or over HTTP.

Does not know models or dialects, nor which backend a request should go to.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import aiohttp
import msgspec

from shared import wire
from shared.contracts import EmbedRequest, EmbedResult, ModelCard, ModelState
from shared.errors import BackendFailed, DeadlineExceeded, Unavailable

T = TypeVar("T")

CONNECT_S = 10.0


class Backend(Protocol):
    """Embeds. All methods raise classes of shared.errors only."""

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Vectors of all inputs, in order."""

    async def cards(self) -> list[ModelCard]:
        """The models there are, by name."""

    async def states(self) -> list[ModelState]:
        """What is loaded, by name."""

    async def close(self) -> None:
        """Free everything. Nothing may be called after it."""


class _Ready(msgspec.Struct):
    models: list[ModelState]


class HttpBackend:
    """A backend app at `url`, over keep-alive connections of the event loop that first calls it.

    timeout_s: for a whole call. Errors of the backend come out as the class it raised. Raises
    Unavailable if nothing answers at `url`, DeadlineExceeded after timeout_s, and BackendFailed if the
    connection breaks or the answer is not the wire's.
    """

    def __init__(self, url: str, timeout_s: float = 220.0) -> None:
        self._url = url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(timeout_s, sock_connect=CONNECT_S)
        self._session: aiohttp.ClientSession | None = None

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        status, body = await self._call("POST", "/embed", wire.pack_embed_request(request))
        if status != 200:
            raise wire.unpack_error(body)
        return wire.unpack_embed_result(body)

    async def cards(self) -> list[ModelCard]:
        status, body = await self._call("GET", "/models")
        if status != 200:
            raise wire.unpack_error(body)
        return _decode(body, list[ModelCard])

    async def states(self) -> list[ModelState]:
        status, body = await self._call("GET", "/ready")
        # 503 with states is an answer (not ready yet); a packed error is not JSON.
        if status not in (200, 503) or not body.startswith(b"{"):
            raise wire.unpack_error(body)
        return _decode(body, _Ready).models

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _call(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        try:
            try:
                return await self._send(method, path, body)
            except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                # The backend closed an idle connection just as it was used. Every call is repeatable.
                return await self._send(method, path, body)
        except TimeoutError:
            raise DeadlineExceeded("the backend took too long") from None
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL):
            raise Unavailable("the backend does not answer", retry_after_s=1.0) from None
        except (aiohttp.ClientError, ConnectionError):
            raise BackendFailed("the connection to the backend broke") from None

    async def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        if self._session is None:
            # Here and not in __init__: a session belongs to the running loop. No limit on
            # connections: the backend's own queue decides what is too much.
            self._session = aiohttp.ClientSession(
                timeout=self._timeout, connector=aiohttp.TCPConnector(limit=0)
            )
        headers = {"content-type": wire.CONTENT_TYPE} if body is not None else None
        async with self._session.request(
            method, self._url + path, data=body, headers=headers
        ) as response:
            return response.status, await response.read()


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BackendFailed("the backend's answer could not be read") from None
