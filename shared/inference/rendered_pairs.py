"""A query and a document in one text, as rerankers made of language models read them.

Knows the model's template; does not know models, batches or how a text is tokenised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from tokenizers import Tokenizer as HfTokenizer

from shared.contracts import CutIds, TokenPair, TruncationSide
from shared.errors import InputTooLong, InvalidInput
from shared.inference.long_texts import LongTexts, each
from shared.inference.steps import Steps
from shared.models.manifest import PairTemplate

_FILLINGS = ("0", "1 2 3 4")
"""Two texts of different tokens, to see which tokens are the template's."""


Encode: TypeAlias = Callable[[Mapping[str, str], bool], Steps[dict[str, list[int]]]]
"""Texts by the field that errors name, and whether they are cut at the end -> ids, `CutIds` if cut."""


class RenderedPairs:
    """Of one tokenizer, which adds no special tokens and does not truncate. Thread-safe.

    Too long a text is cut at its end, which is the document's; what the template puts behind that is
    written back over the last tokens, because the model scores at the very last. So does
    sentence-transformers.
    """

    def __init__(
        self, template: PairTemplate, tokenizer: HfTokenizer, long: LongTexts, most: int
    ) -> None:
        """most: tokens that the model reads."""
        self._template = template
        self._long = long
        self._max_tokens = most
        self._tokenizer = tokenizer
        one, other = (tokenizer.encode(self._render(fill, fill)).ids[::-1] for fill in _FILLINGS)
        same = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
        self._end = one[:same][::-1]

    def read(
        self,
        pairs: Mapping[str, tuple[str, str]],
        encode: Encode,
        *,
        truncate: bool,
        side: TruncationSide,
        max_document_tokens: int | None = None,
    ) -> Steps[dict[str, TokenPair]]:
        """pairs: by the field that errors name.

        Raises InputTooLong if `truncate` is off and a pair does not fit, or a query leaves no room for a
        document; InvalidInput where the beginning would be cut, which is the model's instruction.
        """
        if truncate and side == "left":
            raise InvalidInput(
                "this model's texts begin with its instruction: cut them at the right",
                field="truncation_side",
            )
        yield from self._check_queries(pairs, encode)
        rendered: dict[str, str] = {}
        shortened: set[str] = set()
        for field, (query, document) in pairs.items():
            kept = document
            if max_document_tokens is not None:
                kept = yield from self._shortened(document, max_document_tokens, field)
            if len(kept) < len(document):
                shortened.add(field)
            rendered[field] = self._render(query, kept)
        encoded = yield from encode(rendered, truncate)
        return {field: self._pair(encoded[field], field in shortened) for field in pairs}

    def _render(self, query: str, document: str) -> str:
        return f"{self._template.before}{query}{self._template.between}{document}{self._template.after}"

    def _pair(self, ids: list[int], is_short: bool) -> TokenPair:
        is_cut = isinstance(ids, CutIds)
        if is_cut and self._end:
            ids = [*ids[: -len(self._end)], *self._end]
        return TokenPair([*ids], [0] * len(ids), is_cut or is_short)

    def _check_queries(self, pairs: Mapping[str, tuple[str, str]], encode: Encode) -> Steps[None]:
        heads = {query: field for field, (query, _) in pairs.items()}
        for query, field in heads.items():
            head = f"{self._template.before}{query}{self._template.between}"
            ids = (yield from encode({field: head}, True))[field]
            if isinstance(ids, CutIds) or len(ids) + len(self._end) >= self._max_tokens:
                raise InputTooLong(
                    f"the query leaves no room for a document in the {self._max_tokens} tokens that the "
                    "model reads: shorten it",
                    field="query" if len(heads) == 1 else field,
                )

    def _shortened(self, document: str, tokens: int, field: str) -> Steps[str]:
        """The beginning of `document` that has so many tokens."""
        if len(document.encode()) <= tokens or tokens >= self._max_tokens:
            return document  # no token has less than a byte; and the end of the whole is cut anyway
        if len(document) > self._long.reach:
            encoding = (yield from self._long.beginnings([document], [field]))[0].encoding
        else:
            batch = partial(self._tokenizer.encode_batch, add_special_tokens=False)
            encoding = each(batch, [document], [field])[0]
            yield
        return document if len(encoding) <= tokens else document[: encoding.offsets[tokens - 1][1]]
