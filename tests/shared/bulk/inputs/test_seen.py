"""shared/bulk/inputs/seen.py."""

from __future__ import annotations

import pytest

from shared.bulk.inputs import seen
from shared.bulk.inputs.seen import Seen


def test_each_id_is_new_once_also_after_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is among the recent or the older ones."""
    monkeypatch.setattr(seen, "_RECENT", 16)
    found = Seen()
    ids = [f"request-{number}" for number in range(1000)]
    for id in ids:
        assert found.add(id)
        assert not found.add(id)
    assert not any(found.add(id) for id in ids)
    assert found.add("another")


def test_older_ids_take_eight_bytes_each_and_recent_ones_are_few() -> None:
    """So a million of them take 8 MB, and twice that while merging."""
    found = Seen()
    assert all(found.add(str(number)) for number in range(140_000))
    assert found._older.nbytes == 2 * 65_536 * 8
    assert len(found._recent) == 140_000 - 2 * 65_536
