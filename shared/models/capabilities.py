"""Which requests a model supports: vectors, scores of pairs, labels.

Does not know the contents of requests, or where models are.
"""

from __future__ import annotations

from shared.cards import ModelCard
from shared.contracts import AnyRequest, EmbedRequest, PredictRequest, RerankRequest
from shared.errors import InvalidInput
from shared.models.manifest import Manifest


def check_supports(kind: type[AnyRequest], model: ModelCard | Manifest) -> None:
    """Raises InvalidInput, naming the alternative, if `model` does not support requests of `kind`."""
    if kind is EmbedRequest and model.task != "embedding":
        message = "is a cross-encoder, which has no vectors: rerank with it, or name an embedding model"
    elif kind is PredictRequest and model.task != "cross-encoder":
        message = "is an embedding model, which has no labels: name a cross-encoder"
    elif kind is RerankRequest and model.task == "cross-encoder" and len(model.labels) != 1:
        message = (
            f"has {len(model.labels)} labels instead of one score: use /predict, or name a reranker"
        )
    else:
        return
    raise InvalidInput(f"{model.name} {message}", field="model")


def supports(kind: type[AnyRequest], model: ModelCard | Manifest) -> bool:
    """Whether `check_supports` raises nothing."""
    try:
        check_supports(kind, model)
    except InvalidInput:
        return False
    return True
