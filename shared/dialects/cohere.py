"""Reranking for Cohere, Jina, Voyage, Infinity and Weaviate: body to contract, result to body; errors.

Does not know HTTP headers, backends or how a body was decoded; Cohere's embed
is in cohere_embed.
Shapes:
https://docs.cohere.com/reference/rerank, https://jina.ai/reranker,
https://github.com/weaviate/reranker-transformers
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson

from shared.contracts import EmbedResult, RerankRequest, RerankResult
from shared.dialects.body import (
    NOT_EMPTY,
    Count,
    Text,
    check_count,
    join_indices,
    message_of,
    read_documents,
    rename,
)
from shared.errors import BlitzError
from shared.settings import Settings
from shared.wire.codec import pack
from shared.wording import counted

_NAMES = {
    "max_document_tokens": "max_tokens_per_doc",
    "input": "texts",
    "dimensions": "output_dimension",
}


class Document(msgspec.Struct, frozen=True):
    """A document as an object: only its `text` is ranked; `rank_fields` is not supported."""

    text: str


class DocumentsBody(msgspec.Struct, frozen=True):
    """POST /v1/rerank, /v2/rerank and /rerank with `documents`."""

    query: Text
    documents: Annotated[list[str | Document], NOT_EMPTY]
    model: str | None = None
    top_n: Count | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Count | None = None
    truncation: bool | None = None

    @property
    def texts(self) -> list[str]:
        """The documents' texts, objects unwrapped."""
        return [each if isinstance(each, str) else each.text for each in self.documents]


class VoyageBody(msgspec.Struct, frozen=True):
    """POST /v1/rerank from Voyage's clients, recognised by `top_k` or `truncation`."""

    query: Text
    documents: Annotated[list[str], NOT_EMPTY]
    model: str | None = None
    top_k: Count | None = None
    return_documents: bool | None = None
    truncation: bool | None = None

    @property
    def texts(self) -> list[str]:
        """The documents, which are texts here."""
        return self.documents


class WeaviateBody(msgspec.Struct, frozen=True):
    """POST /rerank from Weaviate's reranker-transformers, recognised by `property`."""

    query: Text
    documents: Annotated[list[str], NOT_EMPTY]
    property: str
    model: str | None = None


def request_from(body: DocumentsBody | VoyageBody, *, model: str, settings: Settings) -> RerankRequest:
    """The contract request. Raises InvalidInput and EmptyInput naming the field."""
    return RerankRequest(
        model=model,
        query=body.query,
        documents=read_documents(body.texts, field="documents", max_inputs=settings.max_inputs),
        truncate=body.truncation is not False,
        max_document_tokens=body.max_tokens_per_doc if isinstance(body, DocumentsBody) else None,
    )


def weaviate_request_from(body: WeaviateBody, *, model: str, settings: Settings) -> RerankRequest:
    """The contract request. Raises InvalidInput and EmptyInput.

    Weaviate sends "" for an object without the property, so all documents may be blank.
    """
    check_count(len(body.documents), field="documents", max_inputs=settings.max_inputs)
    return RerankRequest(model=model, query=body.query, documents=tuple(body.documents))


def format_v1(result: RerankResult, body: DocumentsBody) -> bytes:
    """JSON for clients of Cohere v1 and of Jina: {id, model, results, usage, meta}."""
    return _dump(_v1(result, _results_with_documents(result, body)))


def format_v1_msgpack(result: RerankResult, body: DocumentsBody) -> bytes:
    """As the JSON, `results` as columns: {index: (M,) int32, relevance_score: (M,) float64, text?}."""
    return pack(_v1(result, _columns_with_texts(result, body)))


def format_infinity(result: RerankResult, body: DocumentsBody) -> bytes:
    """As v1's JSON, but documents are strings, as litellm expects from Infinity."""
    results = _results(result, body.top_n)
    if body.return_documents:
        texts = body.texts
        for each in results:
            each["document"] = texts[each["index"]]
    return _dump(_v1(result, results))


def format_voyage(result: RerankResult, body: VoyageBody) -> bytes:
    """JSON {object, data: [{index, relevance_score, document?}], model, usage}, best first."""
    data = _results(result, body.top_k)
    if body.return_documents:
        for each in data:
            each["document"] = body.documents[each["index"]]
    return _dump(_voyage(result, data))


def format_voyage_msgpack(result: RerankResult, body: VoyageBody) -> bytes:
    """As the JSON, `data` as columns: {index: (M,) int32, relevance_score: (M,) float64, document?}."""
    columns = _columns(result, body.top_k)
    if body.return_documents:
        columns["document"] = [body.documents[index] for index in result.ranking[: body.top_k]]
    return pack(_voyage(result, columns))


def format_v2(result: RerankResult, body: DocumentsBody) -> bytes:
    """JSON {id, results: [{index, relevance_score, document?}], meta}, best first.

    Cohere v2 no longer returns documents, but clients still ask for them.
    """
    return _dump(_v2(result, _results_with_documents(result, body), "2"))


def format_v2_msgpack(result: RerankResult, body: DocumentsBody) -> bytes:
    """As v1's msgpack, without model and usage."""
    return pack(_v2(result, _columns_with_texts(result, body), "2"))


def format_weaviate(result: RerankResult, body: WeaviateBody) -> bytes:
    """JSON {scores: [{document, score}]} in the documents' own order: Weaviate reads by position."""
    pairs = zip(body.documents, result.scores, strict=True)
    return _dump({"scores": [{"document": document, "score": score} for document, score in pairs]})


def format_weaviate_msgpack(result: RerankResult, body: WeaviateBody) -> bytes:
    """{scores: (N,) float64}, in the documents' own order."""
    return pack({"scores": result.scores})


def format_error(error: BlitzError) -> tuple[int, bytes]:
    """HTTP status and JSON body: Cohere's clients read `message`, Jina's `detail`, Weaviate `error`."""
    message = message_of(error, lambda field: rename(field, _NAMES))
    return error.status, orjson.dumps(dict.fromkeys(("message", "detail", "error"), message))


def warnings_of(result: EmbedResult | RerankResult, noun: str) -> list[str]:
    """Warnings for `meta`. noun: what the dialect calls one of the things that were truncated."""
    if not result.cut:
        return [*result.warnings]
    many, was = counted(len(result.cut), noun), "was" if len(result.cut) == 1 else "were"
    cut = f"{many} {was} truncated to the model's limit: {join_indices(result.cut)}"
    return [cut, *result.warnings]


def _results(result: RerankResult, most: int | None) -> list[dict[str, Any]]:
    order = result.ranking[:most]
    return [{"index": index, "relevance_score": result.scores[index]} for index in order]


def _results_with_documents(result: RerankResult, body: DocumentsBody) -> list[dict[str, Any]]:
    results = _results(result, body.top_n)
    if body.return_documents:
        texts = body.texts
        for each in results:
            each["document"] = {"text": texts[each["index"]]}
    return results


def _columns_with_texts(result: RerankResult, body: DocumentsBody) -> dict[str, object]:
    columns = _columns(result, body.top_n)
    if body.return_documents:
        texts = body.texts
        columns["text"] = [texts[index] for index in result.ranking[: body.top_n]]
    return columns


def _columns(result: RerankResult, most: int | None) -> dict[str, object]:
    order = result.ranking[:most]
    return {"index": np.array(order, np.int32), "relevance_score": result.scores[order]}


def _voyage(result: RerankResult, data: object) -> dict[str, object]:
    usage = {"total_tokens": result.total_tokens}
    return {"object": "list", "data": data, "model": result.model, "usage": usage}


def _v1(result: RerankResult, results: object) -> dict[str, object]:
    usage = {"total_tokens": result.total_tokens}
    return {"model": result.model, "usage": usage, **_v2(result, results, "1")}


def _v2(result: RerankResult, results: object, version: str) -> dict[str, object]:
    tokens = {"input_tokens": result.total_tokens}
    meta: dict[str, object] = {"api_version": {"version": version}, "tokens": tokens}
    warnings = warnings_of(result, "document")
    if result.method == "cosine":
        # Cohere documents reranker scores from 0 to 1.
        warnings.append(
            f"{result.model} is an embedding model: scores are cosine similarities, from -1 to 1"
        )
    if warnings:
        meta["warnings"] = warnings
    return {"id": str(uuid.uuid4()), "results": results, "meta": meta}


def _dump(body: dict[str, object]) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
