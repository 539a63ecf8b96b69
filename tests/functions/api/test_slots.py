"""Concurrent transfers: hand-counted shares."""

from __future__ import annotations

import pytest

from functions.api.slots import Slots
from shared.errors import Overloaded


def test_an_owner_has_at_most_half_and_all_have_all() -> None:
    """So one key's transfers leave room for another's, and what has ended is room again."""
    slots = Slots(8, "uploads")
    for _ in range(4):
        slots.acquire("a")
    with pytest.raises(Overloaded, match="4 uploads are in progress, one key's limit") as refused:
        slots.acquire("a")
    assert refused.value.retry_after_s == 1
    for owner in ("b", "b", "b", "c"):
        slots.acquire(owner)
    with pytest.raises(Overloaded, match="8 uploads are in progress, this service's limit"):
        slots.acquire("c")
    slots.release("a")
    with slots.acquired("c"), pytest.raises(Overloaded):
        slots.acquire("a")
    slots.acquire("a")


def test_where_no_keys_are_known_everyone_has_all() -> None:
    """They cannot be told apart."""
    slots = Slots(2, "uploads")
    slots.acquire("")
    slots.acquire("")
    with pytest.raises(Overloaded, match="2 uploads are in progress, this service's limit"):
        slots.acquire("")


def test_a_block_that_fails_leaves_its_slot() -> None:
    """As one that ends."""
    slots = Slots(2, "uploads")
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), slots.acquired("a"):
            raise ValueError("broken")
