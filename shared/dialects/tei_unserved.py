"""Text Embeddings Inference's routes that are not served, with the reason for a model.

Errors are in tei's shape. Does not know HTTP.
"""

from __future__ import annotations

import msgspec

from shared.cards import ModelCard
from shared.contracts import AnyRequest, Result
from shared.errors import InvalidInput
from shared.settings import Settings


class UnservedBody(msgspec.Struct, frozen=True):
    """Any body; it is refused."""

    model: str | None = None


def why_no_token_vectors(card: ModelCard | None) -> str:
    """Reason for /embed_all. card: of the named model; None if unknown."""
    if card is None:
        why = "the engines pool a text's token vectors into one, which /embed returns"
    elif card.task == "cross-encoder":
        why = f"{card.name} is a cross-encoder, which has scores and no vectors: /rerank or /predict"
    else:
        why = (
            f"the token vectors of {card.name} are pooled into one per text ({card.pooling}), which "
            "/embed returns"
        )
    return f"/embed_all is not served: {why}"


def why_no_sparse_vectors(card: ModelCard | None) -> str:
    """Reason for /embed_sparse. card: as above."""
    if card is None:
        why = "no model here has term weights, as SPLADE models do; /embed returns dense vectors"
    elif card.task == "cross-encoder":
        why = f"{card.name} is a cross-encoder, which has scores and no vectors: /rerank or /predict"
    else:
        why = (
            f"{card.name} has no term weights, as SPLADE models do, but one dense vector per text "
            f"({card.pooling} pooling, {card.dimensions} dimensions), which /embed returns"
        )
    return f"/embed_sparse is not served: {why}"


REFUSALS = {"/embed_all": why_no_token_vectors, "/embed_sparse": why_no_sparse_vectors}


def refuse(body: UnservedBody, *, model: str, settings: Settings) -> AnyRequest:
    """Raises InvalidInput: `Operation.refusal` answers before this is called."""
    raise InvalidInput("this path is not served")


def format_refused(result: Result, body: UnservedBody) -> bytes:
    """Never called."""
    return b""
