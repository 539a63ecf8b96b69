"""Text Embeddings Inference's routes that are not served, each with the reason, for one model or all.

Does not know HTTP; errors are in tei's shape.
"""

from __future__ import annotations

import msgspec

from shared.contracts import AnyRequest, ModelCard, Result
from shared.errors import InvalidInput
from shared.settings import Settings


class UnservedBody(msgspec.Struct, frozen=True):
    """Whatever it holds, it is refused."""

    model: str | None = None


def why_no_token_vectors(card: ModelCard | None) -> str:
    """Of /embed_all. card: of the model that is asked; None if that is not known."""
    if card is None:
        why = "the engines here pool the vectors of a text's tokens into one, which /embed gives"
    elif card.task == "cross-encoder":
        why = f"{card.name} is a cross-encoder, which has scores and no vectors: /rerank or /predict"
    else:
        why = (
            f"the vectors that {card.name} has for a text's tokens are pooled into one "
            f"({card.pooling}), which /embed gives"
        )
    return f"/embed_all is not served: {why}"


def why_no_sparse_vectors(card: ModelCard | None) -> str:
    """Of /embed_sparse. card: as above."""
    if card is None:
        why = "no model here has weights for words, as SPLADE has; /embed gives dense vectors"
    elif card.task == "cross-encoder":
        why = f"{card.name} is a cross-encoder, which has scores and no vectors: /rerank or /predict"
    else:
        why = (
            f"{card.name} gives a text one dense vector ({card.pooling} pooling, {card.dimensions} "
            "numbers), as /embed does, and has no weights for words, as SPLADE has"
        )
    return f"/embed_sparse is not served: {why}"


REFUSALS = {"/embed_all": why_no_token_vectors, "/embed_sparse": why_no_sparse_vectors}


def refuse(body: UnservedBody, *, model: str, settings: Settings) -> AnyRequest:
    """Raises InvalidInput."""
    raise InvalidInput("this path is not served")


def format_refused(result: Result, body: UnservedBody) -> bytes:
    """There is no result of what is refused."""
    return b""
