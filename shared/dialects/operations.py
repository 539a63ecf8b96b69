"""The table of public POST routes: paths, body type, parser and formatters.

A new dialect is a module beside this one and an entry here. Does not know backends, or HTTP beyond
paths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias, get_type_hints

import msgspec

from shared.cards import Task
from shared.contracts import AnyRequest
from shared.dialects import (
    azure_search,
    cohere,
    cohere_embed,
    ollama,
    openai,
    tei,
    tei_scores,
    tei_tokens,
    tei_vectors,
)
from shared.dialects.body import PresentFields
from shared.errors import BlitzError

FormatError: TypeAlias = Callable[[BlitzError], tuple[int, bytes]]
"""Error -> HTTP status and JSON body, in one dialect's shape."""


class Operation(msgspec.Struct, frozen=True):
    """One operation of a dialect.

    body: a msgspec Struct; its field `model`, str or None, names the model. request_from: body, model=,
    settings= -> a contract; raises InvalidInput naming the body's field. format_result,
    format_result_msgpack: result, body -> the response's bytes. task: the preferred task of the default
    model. fits: whether a body is for this operation, if several share a path; the first that fits is
    chosen, or
        else the last one.
    query: fields of the body that may come in the query string.
    spellings: equivalent names of a model, the given name first.
    stand_in: where each input may fail alone, a text that is embedded if all of them do.
    """

    summary: str
    paths: tuple[str, ...]
    body: type[Any]
    request_from: Callable[..., AnyRequest]
    format_result: Callable[[Any, Any], bytes]
    format_result_msgpack: Callable[[Any, Any], bytes]
    format_error: FormatError
    task: Task = "embedding"
    fits: Callable[[PresentFields], bool] = lambda present: True
    query: tuple[str, ...] = ()
    spellings: Callable[[str], tuple[str, ...]] = lambda name: (name,)
    stand_in: str | None = None


OPERATIONS = (
    Operation(
        "Embed (OpenAI, Voyage, Mistral, Jina)",
        (
            "/v1/embeddings",
            "/embeddings",
            "/openai/v1/embeddings",
            "/openai/deployments/{model}/embeddings",
        ),
        openai.EmbeddingsBody,
        openai.request_from,
        openai.format_result,
        openai.format_result_msgpack,
        openai.format_embeddings_error,
    ),
    Operation(
        "Compare one sentence with others (Text Embeddings Inference)",
        ("/similarity", "/"),
        tei.SimilarityBody,
        tei.similarity_request_from,
        tei.format_similarity,
        tei.format_similarity_msgpack,
        tei.format_similarity_error,
        fits=lambda present: present.get("inputs", False),
    ),
    Operation(
        "Rerank texts (Text Embeddings Inference)",
        ("/rerank", "/"),
        tei_scores.RerankBody,
        tei_scores.rerank_request_from,
        tei_scores.format_ranks,
        tei_scores.format_ranks_msgpack,
        tei.format_error,
        task="cross-encoder",
        fits=lambda present: "texts" in present,
    ),
    Operation(
        "Embed (Text Embeddings Inference)",
        ("/embed", "/"),
        tei.EmbedBody,
        tei.request_from,
        tei.format_result,
        tei.format_result_msgpack,
        tei.format_error,
    ),
    Operation(
        "Embed as weights of words (Text Embeddings Inference)",
        ("/embed_sparse",),
        tei_vectors.VectorsBody,
        tei_vectors.sparse_request_from,
        tei_vectors.format_sparse,
        tei_vectors.format_sparse_msgpack,
        tei.format_error,
        task="sparse",
    ),
    Operation(
        "Embed each token (Text Embeddings Inference)",
        ("/embed_all",),
        tei_vectors.VectorsBody,
        tei_vectors.tokens_request_from,
        tei_vectors.format_tokens,
        tei_vectors.format_tokens_msgpack,
        tei.format_error,
        task="multi-vector",
    ),
    Operation(
        "Label texts or pairs (Text Embeddings Inference)",
        ("/predict",),
        tei_scores.PredictBody,
        tei_scores.predict_request_from,
        tei_scores.format_predictions,
        tei_scores.format_predictions_msgpack,
        tei.format_error,
        task="cross-encoder",
    ),
    Operation(
        "Tokenize texts (Text Embeddings Inference)",
        ("/tokenize",),
        tei_tokens.TokenizeBody,
        tei_tokens.request_from,
        tei_tokens.format_result,
        tei_tokens.format_result_msgpack,
        tei.format_error,
    ),
    Operation(
        "Decode token ids (Text Embeddings Inference)",
        ("/decode",),
        tei_tokens.DecodeBody,
        tei_tokens.decode_request_from,
        tei_tokens.format_texts,
        tei_tokens.format_texts_msgpack,
        tei.format_error,
    ),
    Operation(
        "Score documents (Weaviate)",
        ("/rerank",),
        cohere.WeaviateBody,
        cohere.weaviate_request_from,
        cohere.format_weaviate,
        cohere.format_weaviate_msgpack,
        cohere.format_error,
        task="cross-encoder",
        fits=lambda present: "property" in present,
    ),
    Operation(
        "Rerank documents (Infinity, as litellm reads it)",
        ("/infinity/rerank",),
        cohere.DocumentsBody,
        cohere.request_from,
        cohere.format_infinity,
        cohere.format_v1_msgpack,
        cohere.format_error,
        task="cross-encoder",
    ),
    Operation(
        "Rerank documents (Voyage)",
        ("/v1/rerank",),
        cohere.VoyageBody,
        cohere.request_from,
        cohere.format_voyage,
        cohere.format_voyage_msgpack,
        cohere.format_error,
        task="cross-encoder",
        fits=lambda present: "top_n" not in present and bool({"top_k", "truncation"} & present.keys()),
    ),
    Operation(
        "Rerank documents (Cohere v1, Jina)",
        ("/v1/rerank", "/rerank"),
        cohere.DocumentsBody,
        cohere.request_from,
        cohere.format_v1,
        cohere.format_v1_msgpack,
        cohere.format_error,
        task="cross-encoder",
    ),
    Operation(
        "Rerank documents (Cohere v2)",
        ("/v2/rerank",),
        cohere.DocumentsBody,
        cohere.request_from,
        cohere.format_v2,
        cohere.format_v2_msgpack,
        cohere.format_error,
        task="cross-encoder",
    ),
    Operation(
        "Embed (Cohere v2)",
        ("/v2/embed",),
        cohere_embed.TextsBody,
        cohere_embed.request_from,
        cohere_embed.format_result,
        cohere_embed.format_result_msgpack,
        cohere.format_error,
    ),
    Operation(
        "Embed (Cohere v1)",
        ("/v1/embed",),
        cohere_embed.TextsBody,
        cohere_embed.request_from,
        cohere_embed.format_v1,
        cohere_embed.format_v1_msgpack,
        cohere.format_error,
    ),
    Operation(
        "Embed (Ollama)",
        ("/api/embed",),
        ollama.OllamaBody,
        ollama.request_from,
        ollama.format_result,
        ollama.format_result_msgpack,
        ollama.format_error,
        spellings=ollama.spellings,
    ),
    Operation(
        "Embed one text (Ollama, older route)",
        ("/api/embeddings",),
        ollama.OllamaPromptBody,
        ollama.prompt_request_from,
        ollama.format_prompt,
        ollama.format_prompt_msgpack,
        ollama.format_prompt_error,
        spellings=ollama.spellings,
    ),
    Operation(
        "Embed records (Azure AI Search: custom Web API skill and vectorizer)",
        ("/azure-search",),
        azure_search.RecordsBody,
        azure_search.request_from,
        azure_search.format_result,
        azure_search.format_result_msgpack,
        azure_search.format_error,
        query=("input_type", "prompt_name", "dimensions", "input", "output"),
        stand_in=azure_search.STAND_IN,
    ),
)


def supported_by(body: type[Any]) -> frozenset[str]:
    """The JSON names of a body's fields."""
    return _SUPPORTED[body]


def operations_at(path: str) -> tuple[Operation, ...]:
    """The operations that share `path`, in the order in which `choose` tries them."""
    return tuple(each for each in OPERATIONS if path in each.paths)


@cache
def request_type_of(operation: Operation) -> type[AnyRequest]:
    """The contract type that an operation's bodies become."""
    kind: type[AnyRequest] = get_type_hints(operation.request_from)["return"]
    return kind


def choose(operations: Sequence[Operation], present: PresentFields) -> Operation:
    """The operation of a path that a body is for."""
    return next((each for each in operations[:-1] if each.fits(present)), operations[-1])


PATHS = tuple(dict.fromkeys(path for each in OPERATIONS for path in each.paths))
"""All paths, without duplicates."""


def error_format_at(path: str) -> FormatError:
    """The error format for a request whose body was not read; OpenAI's at unknown paths."""
    return _ERROR_FORMATS.get(path, openai.format_error)


def is_operation(path: str) -> bool:
    """Whether requests to `path` go to a backend."""
    return path in _ERROR_FORMATS or _AZURE_DEPLOYMENT.fullmatch(path) is not None


_SUPPORTED = {
    each.body: frozenset(field.encode_name for field in msgspec.structs.fields(each.body))
    for each in OPERATIONS
}
KNOWN = frozenset().union(*_SUPPORTED.values())
"""Fields of all dialects."""

_ERROR_FORMATS = {path: operations_at(path)[-1].format_error for path in PATHS}
_AZURE_DEPLOYMENT = re.compile("/openai/deployments/(?s:.+)/embeddings")
"""The only path with a parameter; its shape is OpenAI's, as for unknown paths."""
