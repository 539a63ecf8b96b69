"""Text Embeddings Inference's routes that are not served, each with the reason.

Does not know HTTP; errors are in tei's shape.
"""

from __future__ import annotations

import msgspec

from shared.contracts import AnyRequest, Result
from shared.errors import InvalidInput
from shared.settings import Settings

WHY = {
    "/embed_all": "/embed_all is not served: the builds of models here pool the tokens' vectors into "
    "one, which /embed gives",
    "/embed_sparse": "/embed_sparse is not served: no model here has weights for words, as SPLADE has; "
    "/embed gives dense vectors",
    "/decode": "/decode is not served: no texts are made of ids here; /tokenize tells the text of each "
    "token",
}


class NothingBody(msgspec.Struct, frozen=True):
    """Whatever it holds, it is refused."""

    model: str | None = None


def nothing_from(body: NothingBody, *, model: str, settings: Settings) -> AnyRequest:
    """Raises InvalidInput."""
    raise InvalidInput("this path is not served")


def format_nothing(result: Result, body: NothingBody) -> bytes:
    """There is no result of what is refused."""
    return b""
