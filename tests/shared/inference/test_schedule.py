"""Micro-batches: the plan and the choice, by tables."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.inference.schedule import Offer, choose, plan_batches


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([3], [[0]]),
        ([5, 20, 6], [[1], [2, 0]]),
        ([100], [[0]]),
        ([100, 1], [[0], [1]]),
        ([2, 2, 2, 2, 2], [[0, 1, 2, 3], [4]]),
        ([10, 10, 10], [[0, 1], [2]]),
        ([0, 0], [[0, 1]]),
    ],
)
def test_plans_are_the_expected_ones(lengths: list[int], expected: list[list[int]]) -> None:
    """A budget of 20 padded tokens and 4 texts, longest first."""
    assert plan_batches(lengths, budget_tokens=20, max_texts=4) == expected


@pytest.mark.parametrize(
    ("max_bytes", "expected"),
    [(1000, [[0], [1, 2], [3, 4, 5, 6]]), (99, [[0], [1], [2], [3], [4], [5], [6]])],
)
def test_a_plan_keeps_within_the_memory(max_bytes: int, expected: list[list[int]]) -> None:
    """By the square of a text's tokens; a text that is too large goes alone, and is others' business."""
    lengths = [40, 20, 20, 10, 10, 10, 10]
    plan = plan_batches(
        lengths,
        budget_tokens=1000,
        max_texts=4,
        max_bytes=max_bytes,
        text_bytes=lambda tokens: tokens * tokens,
    )
    assert plan == expected


@settings(deadline=None, database=None)
@given(
    st.lists(st.integers(1, 60), max_size=80),
    st.integers(1, 100),
    st.integers(1, 10),
)
def test_a_plan_holds_each_text_once_within_the_limits(
    lengths: list[int], budget: int, texts: int
) -> None:
    """No text is lost or doubled, and only a text alone may exceed the budget."""
    batches = plan_batches(lengths, budget_tokens=budget, max_texts=texts)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= texts
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget


A, B = object(), object()


@pytest.mark.parametrize(
    ("offers", "expected"),
    [
        ([Offer(A, 1, 10, 10)], [0]),
        ([Offer(A, 1, 500, 500), Offer(A, 1, 5, 5)], [0]),
        ([Offer(A, 1, 10, 10), Offer(A, 1, 10, 10)], [0, 1]),
        ([Offer(A, 1, 10, 10), Offer(B, 1, 10, 10), Offer(A, 1, 9, 9)], [0, 2]),
        # 2 x 10 padded for 15 real: 5 added, more than a quarter of 15.
        ([Offer(A, 1, 10, 10), Offer(A, 1, 5, 5)], [0]),
        # 2 x 10 padded for 18 real: 2 added.
        ([Offer(A, 1, 8, 8), Offer(A, 1, 10, 10)], [0, 1]),
        # Budget 100: the second would make 120, the third fits.
        ([Offer(A, 2, 20, 40), Offer(A, 4, 20, 80), Offer(A, 3, 20, 60)], [0, 2]),
        # At most 8 texts.
        ([Offer(A, 6, 1, 6), Offer(A, 3, 1, 3), Offer(A, 2, 1, 2)], [0, 2]),
        # At most 1,000 bytes: three texts as large as the largest take 1,200, two 800.
        ([Offer(A, 1, 8, 8, 300), Offer(A, 2, 9, 18, 400), Offer(A, 1, 9, 9, 400)], [0, 2]),
    ],
)
def test_the_choice_is_the_expected_one(offers: list[Offer], expected: list[int]) -> None:
    """The first always goes; others join if model, limits and padding allow."""
    assert choose(offers, budget_tokens=100, max_texts=8, max_bytes=1000) == expected
