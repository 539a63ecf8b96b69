"""When a service is ready. What /ready answers is in test_router and test_backend."""

from __future__ import annotations

from functions.http.readiness import is_ready
from shared.cards import ModelState

WARM, COLD, LOADING = ModelState("a", "warm"), ModelState("b", "cold"), ModelState("c", "loading")
FAILED = ModelState("d", "failed", "no")


def test_named_models_must_all_be_warm() -> None:
    """Others do not matter, and where none is to be warm there is nothing to wait for."""
    assert is_ready([WARM, COLD, FAILED], ("a",))
    assert not is_ready([WARM, COLD], ("a", "b"))
    assert not is_ready([], ("a",))
    assert is_ready([LOADING, FAILED], ())


def test_where_it_is_not_known_which_should_be_warm_one_is_enough() -> None:
    """Or nothing, if nothing was ever asked for."""
    assert is_ready([WARM, FAILED], None)
    assert is_ready([COLD], None)
    assert is_ready([], None)
    assert not is_ready([COLD, FAILED], None)
    assert not is_ready([COLD, LOADING], None)
