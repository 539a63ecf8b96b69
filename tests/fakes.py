"""Stand-ins that tests of several rooms share: the one place for them."""

from __future__ import annotations

from typing import Any

from shared.contracts import AnyRequest


class ByOperation:
    """A backend that answers with a method an operation: embed, rerank, predict, tokenize."""

    async def run(self, request: AnyRequest) -> Any:
        return await getattr(self, request.operation)(request)
