"""Which replica a request goes to, from what a router knows of them."""

from __future__ import annotations

import pytest

from functions.cluster.placement import BUSY_REQUESTS, Holding, View, free_places, rank

BUSY = BUSY_REQUESTS


def _view(key: str, holding: Holding = "no", free: int = 1, requests: int = 0) -> View:
    return View(key, holding, free, requests)


@pytest.mark.parametrize(
    ("views", "first"),
    [
        pytest.param([_view("a"), _view("b", "warm")], ["b"], id="who holds it"),
        pytest.param([_view("a", "warm"), _view("b", "warm", requests=5)], ["a", "b"], id="all holders"),
        pytest.param([_view("a", "loading"), _view("b")], ["a"], id="who loads it, before another does"),
        pytest.param(
            [_view("a", "loading"), _view("b", "warm", requests=5)], ["b"], id="who has it loaded"
        ),
        pytest.param([_view("a", "warm", requests=BUSY), _view("b")], ["b"], id="an idle one more"),
        pytest.param(
            [_view("a", "warm", requests=BUSY), _view("b", requests=BUSY // 2)],
            ["a"],
            id="no more than half as busy, or it does not help",
        ),
        pytest.param(
            [_view("a", "warm", requests=9 * BUSY), _view("b", "loading"), _view("c")],
            ["a"],
            id="one more at a time",
        ),
        pytest.param(
            [_view("a", "warm", requests=BUSY), _view("b", "warm"), _view("c")],
            ["a", "b"],
            id="no more while one holder has room",
        ),
        pytest.param([_view("a", free=0), _view("b")], ["b"], id="a free place"),
        pytest.param(
            [_view("a", requests=BUSY), _view("b", free=0)], ["b"], id="not busy, before a free place"
        ),
    ],
)
def test_the_first_choice(views: list[View], first: list[str]) -> None:
    """And in whatever order the replicas are known."""
    assert sorted(rank("m", views)[0]) == first
    assert sorted(rank("m", views[::-1])[0]) == first


@pytest.mark.parametrize(
    ("places", "asked_for", "free"),
    [
        pytest.param(3, (), 3, id="none in use"),
        pytest.param(3, ("a",), 2, id="one, by its name"),
        pytest.param(3, ("b@r2",), 2, id="one, by its revision"),
        pytest.param(3, ("b", "b@r2"), 2, id="one, by both"),
        pytest.param(3, ("c",), 3, id="what is not here"),
        pytest.param(2, ("a", "b"), 0, id="all"),
        pytest.param(1, ("a", "b"), 0, id="more than there are places while one is loading"),
    ],
)
def test_an_idle_model_leaves_its_place_free(places: int, asked_for: tuple[str, ...], free: int) -> None:
    assert free_places(places, [{"a", "a@r1"}, {"b", "b@r2"}], asked_for) == free


def test_every_replica_is_a_choice_in_the_end() -> None:
    """One that is full is passed over: then the next is asked."""
    views = [_view("a", "warm", requests=99), _view("b", "loading"), _view("c", free=0), _view("d")]
    assert sorted(key for group in rank("m", views) for key in group) == ["a", "b", "c", "d"]


def test_routers_agree_where_a_new_model_goes_and_models_spread() -> None:
    """By hashes: of 1,000 models each of 10 replicas gets 60 to 140, and 9 in 10 stay when one goes."""
    views = [_view(f"r{n}") for n in range(10)]
    homes = {f"m{n}": rank(f"m{n}", views)[0][0] for n in range(1000)}
    counts = [list(homes.values()).count(view.key) for view in views]
    assert min(counts) > 60
    assert max(counts) < 140
    after = {model: rank(model, views[:-1])[0][0] for model in homes}
    assert all(after[model] == home for model, home in homes.items() if home != "r9")
