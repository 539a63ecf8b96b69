"""What a backend is to those who call it: in this process, over HTTP, or wherever else."""

from __future__ import annotations

from typing import Protocol

from shared.cards import ModelState
from shared.contracts import Request, ResultT


class Backend(Protocol):
    """Runs models. Its methods raise classes of shared.errors only."""

    async def run(self, request: Request[ResultT]) -> ResultT:
        """The result of all inputs or documents, in order. See shared.contracts for which there are."""

    def check(self) -> None:
        """Raise Overloaded if it is known without asking that no request would be taken now."""

    async def states(self) -> list[ModelState]:
        """What is loaded, by name."""

    async def close(self) -> None:
        """Free everything. Nothing may be called after it."""
