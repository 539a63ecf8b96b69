"""shared.partition: splitting and joining lose nothing, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from shared.contracts import (
    DecodeRequest,
    DecodeResult,
    EmbedRequest,
    EmbedResult,
    PredictRequest,
    PredictResult,
    RerankRequest,
    RerankResult,
    Timings,
    TokenizeRequest,
    TokenizeResult,
)
from shared.errors import EmptyInput, InputTooLong
from shared.partition import in_whole, join, split

TEXTS = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=40).map(tuple)
SIZES = st.integers(1, 45)


@given(TEXTS, SIZES)
def test_any_split_holds_each_text_once_in_order(texts: tuple[str, ...], size: int) -> None:
    """Parts are full but the last, and together are the request; everything else stays as it was."""
    embed = EmbedRequest("m", texts, dimensions=3, normalize=False, truncate=False, prompt_name="q")
    rerank = RerankRequest("m", "q", texts, raw_scores=True, max_document_tokens=4)
    predict = PredictRequest("m", texts, raw_scores=True, truncation_side="left")
    tokenize = TokenizeRequest("m", texts, special_tokens=False, prompt_name="q")
    ids = tuple(tuple(map(ord, text)) for text in texts)
    decode = DecodeRequest("m", ids, skip_special_tokens=False)
    of_ids = split(decode, size)
    assert all(replace(part, inputs=ids) == decode for part in of_ids)
    assert tuple(item for part in of_ids for item in part.inputs) == ids
    for parts in (
        [(replace(part, inputs=texts) == embed, part.inputs) for part in split(embed, size)],
        [(replace(part, documents=texts) == rerank, part.documents) for part in split(rerank, size)],
        [(replace(part, inputs=texts) == predict, part.inputs) for part in split(predict, size)],
        [(replace(part, inputs=texts) == tokenize, part.inputs) for part in split(tokenize, size)],
    ):
        assert all(same for same, _ in parts)
        assert all(len(items) == size for _, items in parts[:-1])
        assert tuple(item for _, items in parts for item in items) == texts


@given(TEXTS, SIZES)
def test_joined_parts_are_the_whole_result(texts: tuple[str, ...], size: int) -> None:
    """A result cut anywhere and joined is the result: rows, counts, and everything else."""
    rows = np.arange(len(texts) * 2, dtype=np.float32).reshape(-1, 2)
    counts = tuple(range(len(texts)))
    starts = range(0, len(texts), size)
    cut = tuple(range(0, len(texts), 3))
    embedded = EmbedResult(rows, counts, "m", "r", device="gpu", max_tokens=9, cut=cut)

    def cut_of(start: int) -> tuple[int, ...]:
        return tuple(index - start for index in cut if start <= index < start + size)

    joined = join(
        [
            replace(
                embedded,
                vectors=rows[i : i + size],
                token_counts=counts[i : i + size],
                cut=cut_of(i),
            )
            for i in starts
        ]
    )
    assert np.array_equal(joined.vectors, rows)
    assert replace(joined, vectors=rows) == embedded
    scores = rows.astype(np.float64)
    ranked = RerankResult(
        scores[:, 0], counts, "m", "r", "cross-encoder", device="gpu", logits=rows[:, 0]
    )
    reranked = join(
        [
            replace(
                ranked,
                scores=scores[i : i + size, 0],
                logits=rows[i : i + size, 0],
                token_counts=counts[i : i + size],
            )
            for i in starts
        ]
    )
    assert np.array_equal(reranked.scores, scores[:, 0])
    assert reranked.logits is not None
    assert np.array_equal(reranked.logits, rows[:, 0])
    assert replace(reranked, scores=ranked.scores, logits=ranked.logits) == ranked
    labelled = PredictResult(scores, counts, "m", "r", ("x", "y"))
    predicted = join(
        [
            replace(labelled, scores=scores[i : i + size], token_counts=counts[i : i + size])
            for i in starts
        ]
    )
    assert np.array_equal(predicted.scores, rows)
    parts = [
        TokenizeResult(
            np.full((sum(map(len, part)), 4), i), tuple("".join(part)), tuple(map(len, part)), "m", "r"
        )
        for i, part in enumerate(texts[start : start + size] for start in starts)
    ]
    spelled = join(parts)
    assert spelled.texts == tuple("".join(texts))
    assert spelled.token_counts == tuple(map(len, texts))
    assert np.array_equal(spelled.spans, np.concatenate([part.spans for part in parts]))
    assert replace(predicted, scores=scores) == labelled
    decoded = DecodeResult(texts, tuple(map(len, texts)), "m", "r")
    assert decoded == join(
        [
            replace(
                decoded,
                texts=texts[start : start + size],
                token_counts=decoded.token_counts[start : start + size],
            )
            for start in starts
        ]
    )


def test_timings_are_of_the_slowest_part_in_each_step() -> None:
    """Side by side, the slowest is what the caller waited for."""
    one = EmbedResult(np.zeros((1, 2), np.float32), (1,), "m", "r", Timings(1.0, 5.0, 2.0))
    other = replace(one, timings=Timings(3.0, 4.0, 2.5))
    assert join([one, other]).timings == Timings(3.0, 5.0, 2.5)


@pytest.mark.parametrize(
    ("field", "whole"),
    [
        ("input[3]", "input[503]"),
        ("documents[0]", "documents[500]"),
        ("inputs[2][1]", "inputs[502][1]"),
        ("model", "model"),
        (None, None),
    ],
)
def test_an_error_of_a_part_names_the_item_of_the_whole(field: str | None, whole: str | None) -> None:
    """The caller does not know of parts: the index counts from the request's start, in words too."""
    error = in_whole(InputTooLong(f"{field} is too long", field=field, retry_after_s=2.0), 500)
    assert type(error) is InputTooLong
    assert (error.message, error.field, error.retry_after_s) == (f"{whole} is too long", whole, 2.0)


@pytest.mark.parametrize(
    ("request_", "make_empty"),
    [
        (EmbedRequest("m", ("a",)), lambda: EmbedRequest("m", ())),
        (RerankRequest("m", "q", ("a",)), lambda: RerankRequest("m", "q", ())),
        (PredictRequest("m", ("a",)), lambda: PredictRequest("m", ())),
        (TokenizeRequest("m", ("a",)), lambda: TokenizeRequest("m", ())),
        (DecodeRequest("m", ((1,),)), lambda: DecodeRequest("m", ())),
    ],
)
def test_fields_are_called_as_the_contracts_call_them(request_, make_empty) -> None:  # type: ignore[no-untyped-def]
    """The same name as in the error that an empty request gets."""
    with pytest.raises(EmptyInput) as caught:
        make_empty()
    assert request_.items_as_told == caught.value.field
