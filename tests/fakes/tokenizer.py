"""A tokenizer that only notes which prompt it was given."""

from __future__ import annotations

from typing import Any

import numpy as np

from shared.inference.spelling import Spelling
from shared.inference.steps import Steps


class FakeTokenizer:
    """Notes what is prepended."""

    prefix = ""

    @property
    def speller(self) -> FakeTokenizer:
        return self

    def encode(self, inputs: tuple[str, ...], *, prefix: str, **options: Any) -> Steps[list[list[int]]]:
        self.prefix = prefix
        yield
        return [[1]] * len(inputs)

    def spell(
        self, texts: tuple[str, ...], *, limit: int, prefix: str, special_tokens: bool
    ) -> Steps[list[Spelling]]:
        self.prefix = prefix
        yield
        assert not special_tokens
        return [Spelling(np.zeros((1, 4), np.int32), ["a"]) for _ in texts]
