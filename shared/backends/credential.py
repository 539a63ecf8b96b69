"""How the router authenticates to a backend: by an Entra token, a shared secret, or not at all.

azure-identity is imported when the first token is needed. Does not know requests.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from shared.errors import Misconfigured, Unavailable
from shared.settings import Settings

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

Authorize: TypeAlias = Callable[[], Awaitable[str]]
"""Returns the value of the Authorization header. Raises Unavailable."""

REFRESH_BEFORE_S = 300.0
"""A token is refreshed this long before it expires: longer than any call takes."""


class EntraToken:
    """Tokens of this process's identity for `audience` (api://...), cached until shortly before expiry.

    credential: None for DefaultAzureCredential. clock: Unix seconds. Thread-safe.
    """

    def __init__(
        self,
        audience: str,
        credential: TokenCredential | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._scope = audience + "/.default"
        self._credential = credential
        self._clock = clock
        self._fetching = threading.Lock()
        self._header = ""
        self._fresh_until = 0.0

    async def __call__(self) -> str:
        if self._clock() < self._fresh_until:
            return self._header
        return await asyncio.to_thread(self._fetch)

    def _fetch(self) -> str:
        with self._fetching:  # one fetch for concurrent callers
            if self._clock() < self._fresh_until:
                return self._header
            from azure.core.exceptions import AzureError

            try:
                if self._credential is None:
                    from azure.identity import DefaultAzureCredential

                    self._credential = DefaultAzureCredential()
                token = self._credential.get_token(self._scope)
            except AzureError as error:
                raise Unavailable(
                    "the router cannot sign in to the backend", retry_after_s=5.0
                ) from error
            self._header = f"Bearer {token.token}"
            self._fresh_until = token.expires_on - REFRESH_BEFORE_S
            return self._header


def shared_secret(secret: str) -> Authorize:
    """An Authorize for a fixed secret, which functions.backend.app checks."""

    async def authorize() -> str:
        return f"Bearer {secret}"

    return authorize


def authorization_of(settings: Settings) -> Authorize | None:
    """The Authorize that `settings` ask for; None: no authentication. Raises Misconfigured."""
    if settings.backend_secret and settings.backend_audience:
        raise Misconfigured("set BLITZ_BACKEND_AUDIENCE or BLITZ_BACKEND_SECRET, not both")
    if settings.backend_audience:
        return EntraToken(settings.backend_audience)
    return shared_secret(settings.backend_secret) if settings.backend_secret else None
