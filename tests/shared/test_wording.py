"""What people read about one thing is in the singular."""

from __future__ import annotations

import pytest

from shared.wording import counted


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1001, "1,001 rows")]
)
def test_one_is_singular(count: int, told: str) -> None:
    """None and many are plural, and thousands are told apart."""
    assert counted(count, "row") == told
