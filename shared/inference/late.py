"""Late interaction: what a multi-vector model reads of a query or document, and which vectors count.

Does not know engines, requests or scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from shared.contracts import FloatMatrix, LateIds, TextInput, Tokens, TruncationSide, is_cut
from shared.errors import InputTooLong
from shared.inference.steps import Steps
from shared.inference.tokenization import Tokenizer
from shared.models.manifest import LateInteraction
from shared.vectors import Layer, apply_layer, finish


class LateModel(msgspec.Struct, frozen=True):
    """Of one model. queries, documents: tokenizers that read as much as is read of each."""

    described: LateInteraction
    queries: Tokenizer
    documents: Tokenizer

    def encode(
        self,
        inputs: Sequence[TextInput],
        *,
        is_query: bool,
        prefix: str,
        truncate: bool,
        side: TruncationSide,
    ) -> Steps[list[LateIds]]:
        """Ids of each input, filled up if it is a short query. Raises InvalidInput and InputTooLong."""
        tokenizer = self.queries if is_query else self.documents
        encoded = yield from tokenizer.encode(inputs, truncate=truncate, side=side, prefix=prefix)
        made: list[LateIds] = []
        for index, ids in enumerate(encoded):
            missing = max(0, self.described.expanded_to - len(ids)) if is_query else 0
            if len(ids) + missing > tokenizer.usable_tokens:
                raise InputTooLong(
                    "there is no memory for a query as long as this model makes it",
                    field=f"input[{index}]",
                )
            made.append(
                LateIds(
                    [*ids, *[self.described.expansion_token] * missing],
                    attended=len(ids) + (missing if self.described.attends else 0),
                    skipped=not is_query or self.described.skips_in_queries,
                    is_cut=is_cut(ids),
                )
            )
        return made

    def finish(
        self,
        rows: Sequence[FloatMatrix],
        sequences: Sequence[Tokens],
        layers: Sequence[Layer],
        normalize: bool,
    ) -> list[FloatMatrix]:
        """The (T, D) vectors that count of each sequence's tokens (T', H), after the model's layers."""
        vectors = np.concatenate(rows)
        for layer in layers:
            vectors = apply_layer(vectors, layer)
        vectors = finish(vectors, None, normalize)
        each = np.split(vectors, np.cumsum([len(row) for row in rows])[:-1])
        return [self._counted(row, tokens) for row, tokens in zip(each, sequences, strict=True)]

    def _counted(self, vectors: FloatMatrix, tokens: Tokens) -> FloatMatrix:
        if not self.described.skipped or not isinstance(tokens, LateIds) or not tokens.skipped:
            return vectors
        expanded = np.arange(len(tokens)) >= tokens.attended
        kept = ~np.isin(np.asarray(tokens), self.described.skipped) | expanded
        return vectors[kept]
