"""The Backend protocol: whatever runs models, in this process, over HTTP, or on a cluster."""

from __future__ import annotations

from typing import Protocol

from shared.cards import ModelState
from shared.contracts import Request, ResultT


class Backend(Protocol):
    """Runs models. Its methods raise classes of shared.errors only."""

    async def run(self, request: Request[ResultT]) -> ResultT:
        """The result of all inputs or documents, in order; shared.contracts lists the requests."""

    def check(self) -> None:
        """Raise Overloaded if it is known locally that a request would be refused now."""

    async def states(self) -> list[ModelState]:
        """The states of the models, sorted by name."""

    async def close(self) -> None:
        """Release all resources. No method may be called afterwards."""
