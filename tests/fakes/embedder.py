"""A backend that embeds alone and refuses what a model refuses, and the catalogue of its models."""

from __future__ import annotations

from typing import Any

import numpy as np

from shared.contracts import (
    EmbedRequest,
    EmbedResult,
    EmbedSparseRequest,
    EmbedSparseResult,
    EmbedTokensRequest,
    EmbedTokensResult,
    SparseRow,
)
from shared.errors import InputTooLong, InvalidInput, Overloaded
from tests.fakes.backend import ByOperation

PROMPTS = ("document", "query")


class FakeEmbedder(ByOperation):
    """A vector of the bytes of a text and its prompt's name; raises what `refuses` says of a text.

    Like a model, it refuses prompts that it does not have, and long texts that it must not cut.
    """

    def __init__(self) -> None:
        self.requests: list[EmbedRequest] = []
        self.refuses: dict[str, Exception] = {}
        self.overloaded = 0

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        self.requests.append(request)
        if self.overloaded:
            self.overloaded -= 1
            raise Overloaded("too much", retry_after_s=0.001)
        for index, text in enumerate(request.inputs):
            if (error := self.refuses.get(str(text))) is not None:
                if isinstance(error, InvalidInput):
                    raise InvalidInput(error.message, field=f"input[{index}]")
                raise error
        if request.prompt_name not in (None, "", *PROMPTS):
            raise InvalidInput("no such prompt", field="prompt_name")
        for index, text in enumerate(request.inputs):
            if len(text) > 40 and not request.truncate:
                raise InputTooLong("too many tokens", field=f"input[{index}]")
        prompt = "(none)" if request.prompt_name == "" else request.prompt_name or ""
        vectors = np.stack([bytes_vector(f"{text}{prompt}") for text in request.inputs])
        vectors = vectors[:, : request.dimensions]
        return EmbedResult(vectors, (3,) * len(request.inputs), "mini", request.model.partition("@")[2])


class FakeTokenEmbedder(FakeEmbedder):
    """A sparse and a multi-vector model: weights of a text's letters, and a vector of each letter."""

    async def embed_sparse(self, request: EmbedSparseRequest) -> EmbedSparseResult:
        return EmbedSparseResult.of([letters_of(str(text)) for text in request.inputs], **_told(request))

    async def embed_tokens(self, request: EmbedTokensRequest) -> EmbedTokensResult:
        rows = [np.stack([bytes_vector(each) for each in str(text)]) for text in request.inputs]
        return EmbedTokensResult.of(rows, **_told(request))


def letters_of(text: str) -> SparseRow:
    found, counts = np.unique(np.frombuffer(text.encode(), np.uint8), return_counts=True)
    return SparseRow(found.astype(np.int32), counts.astype(np.float32))


def _told(request: Any) -> Any:
    counts = tuple(len(text) for text in request.inputs)
    name, _, revision = request.model.partition("@")
    return {"token_counts": counts, "model": name, "revision": revision}


def bytes_vector(text: str) -> Any:
    return np.resize(np.frombuffer(text.encode(), np.uint8), 4).astype(np.float32)
