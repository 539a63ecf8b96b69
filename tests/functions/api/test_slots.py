"""Transfers under way: hand-counted shares."""

from __future__ import annotations

import pytest

from functions.api.slots import Slots
from shared.errors import Overloaded


def test_an_owner_has_at_most_half_and_all_have_all() -> None:
    """So one key's transfers leave room for another's, and what has ended is room again."""
    slots = Slots(8, "uploads")
    for _ in range(4):
        slots.enter("a")
    with pytest.raises(Overloaded, match="4 uploads are under way, which is one key's limit") as refused:
        slots.enter("a")
    assert refused.value.retry_after_s == 1
    for owner in ("b", "b", "b", "c"):
        slots.enter(owner)
    with pytest.raises(Overloaded, match="8 uploads are under way, which is all"):
        slots.enter("c")
    slots.leave("a")
    with slots.one("c"), pytest.raises(Overloaded):
        slots.enter("a")
    slots.enter("a")


def test_where_no_keys_are_known_everyone_has_all() -> None:
    """They cannot be told apart."""
    slots = Slots(2, "uploads")
    slots.enter("")
    slots.enter("")
    with pytest.raises(Overloaded, match="2 uploads are under way, which is this service's limit"):
        slots.enter("")


def test_a_block_that_fails_leaves_its_slot() -> None:
    """As one that ends."""
    slots = Slots(2, "uploads")
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), slots.one("a"):
            raise ValueError("broken")
