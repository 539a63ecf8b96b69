"""A credential of Azure's kind without Azure."""

from __future__ import annotations

import threading
from typing import Any

from azure.core.credentials import AccessToken


class FakeCredential:
    """A new token a call, each valid for an hour of a clock that the test moves; or `error`.

    scopes: those that each call asked for.
    """

    def __init__(self, error: Exception | None = None, now: float = 1_000_000.0) -> None:
        self.now = now
        self.scopes: list[tuple[str, ...]] = []
        self.threads: set[int] = set()
        self.error = error

    def clock(self) -> float:
        return self.now

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        self.scopes.append(scopes)
        self.threads.add(threading.get_ident())
        if self.error is not None:
            raise self.error
        return AccessToken(f"token-{len(self.scopes)}", int(self.now) + 3600)
