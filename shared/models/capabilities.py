"""Which requests a model supports: vectors, scores of pairs, labels.

Does not know the contents of requests, or where models are.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.cards import ModelCard, Task
from shared.contracts import (
    AnyRequest,
    EmbedRequest,
    EmbedSparseRequest,
    EmbedTokensRequest,
    PredictRequest,
    RerankRequest,
)
from shared.errors import InvalidInput
from shared.models.manifest import Manifest

_NEEDED: Mapping[type[AnyRequest], Task] = {
    EmbedRequest: "embedding",
    EmbedSparseRequest: "sparse",
    EmbedTokensRequest: "multi-vector",
    PredictRequest: "cross-encoder",
}
"""The only task whose models support a request. Others have something else to answer with."""
_GIVES: Mapping[Task, str] = {
    "embedding": "an embedding model, which gives one dense vector per text: /embed or /v1/embeddings",
    "cross-encoder": "a cross-encoder, which gives scores and no vectors: /rerank or /predict",
    "sparse": "a sparse model, which gives weights of words: /embed_sparse",
    "multi-vector": "a multi-vector model, which gives one vector per token: /embed_all or /rerank",
}
_WANTED: Mapping[type[AnyRequest], str] = {
    EmbedRequest: "an embedding model",
    EmbedSparseRequest: "a sparse model",
    EmbedTokensRequest: "a multi-vector model",
    PredictRequest: "a cross-encoder",
    RerankRequest: "a cross-encoder, an embedding model or a multi-vector model",
}


def check_supports(kind: type[AnyRequest], model: ModelCard | Manifest) -> None:
    """Raises InvalidInput, naming the alternative, if `model` does not support requests of `kind`."""
    task = _NEEDED.get(kind, model.task)
    if task != model.task or (kind is RerankRequest and model.task == "sparse"):
        message = f"is {_GIVES[model.task]}, or name {_WANTED[kind]}"
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
