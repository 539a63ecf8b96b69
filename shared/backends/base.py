"""What a backend is to those who call it: in this process, over HTTP, or wherever else."""

from __future__ import annotations

from typing import Protocol

from shared.contracts import (
    EmbedRequest,
    EmbedResult,
    ModelState,
    PredictRequest,
    PredictResult,
    RerankRequest,
    RerankResult,
    TokenizeRequest,
    TokenizeResult,
)


class Backend(Protocol):
    """Runs models. All methods raise classes of shared.errors only."""

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Vectors of all inputs, in order."""

    async def rerank(self, request: RerankRequest) -> RerankResult:
        """Scores of all documents, in order."""

    async def predict(self, request: PredictRequest) -> PredictResult:
        """Scores of all inputs' labels, in order."""

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Tokens of all inputs, in order. Runs no model, but needs it to be loaded."""

    def check(self) -> None:
        """Raise Overloaded if it is known without asking that no request would be taken now."""

    async def states(self) -> list[ModelState]:
        """What is loaded, by name."""

    async def close(self) -> None:
        """Free everything. Nothing may be called after it."""
