"""A backend that embeds alone and refuses what a model refuses, and the catalogue of its models."""

from __future__ import annotations

from typing import Any

import numpy as np

from shared.contracts import EmbedRequest, EmbedResult
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


def bytes_vector(text: str) -> Any:
    return np.resize(np.frombuffer(text.encode(), np.uint8), 4).astype(np.float32)
