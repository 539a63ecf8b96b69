"""The section Models: what a person reads of each, and that loads and evictions are seen."""

from __future__ import annotations

import json
from functools import partial

import pytest

from tests.page.world import BROKEN, LATE, MINILM, RANKER, SPARSE, TINY, Page, Visit, facts, until
from tests.server import http_get, http_post


def _card(page: Page, name: str) -> Page:
    return page.locator("article.card", has=page.get_by_role("heading", name=name, exact=True))


def _state(page: Page, name: str) -> str:
    return str(_card(page, name).locator(".pill").inner_text())


def _holds(place: Page, text: str) -> bool:
    return text in place.inner_text()


def test_a_card_tells_what_a_model_is(visit: Visit, service: str) -> None:
    """The manifest's figures, which /v1/models tells too."""
    page = visit()
    card = _card(page, MINILM)
    card.wait_for()
    card.get_by_text("more").click()
    [build] = http_get(f"{service}/v1/models/{MINILM}").json()["builds"]
    quality = build["quality"]
    assert quality["batch_max_abs_diff"] == 0
    told = facts(card)
    assert told.pop("Built").startswith("20")
    assert told.pop("Loads in").endswith("s")
    assert told == {
        "Dimensions": "384",
        "Reads": "256 tokens",
        "Size": "24 MB",
        "Pooling": "mean",
        "Cosine to the original": f"{quality['cosine_mean']:.4f}\nlowest {quality['cosine_min']:.4f}",
        "Changes in a batch by": "0\nidentical bits",
        "Texts a second": f"{quality['inputs_per_s']:.0f}\nwhere it was built",
        "Weights": build["source"],
        "Architecture": "BertModel",
    }
    cells = card.locator("tbody td, tbody th").all_inner_texts()
    assert cells == ["cpu-int8", "ONNX Runtime, INT8", build["revision"]]
    assert "Embeds texts" in card.inner_text()


def test_prompts_and_aliases_are_told(visit: Visit) -> None:
    page = visit()
    card = _card(page, TINY.name)
    card.wait_for()
    assert "also called nick" in card.inner_text()
    card.locator("summary").click()
    for name, text in TINY.prompts.items():
        assert name in card.inner_text()
        assert text.strip() in card.inner_text()
    assert "not measured" in card.inner_text()


TASKS = {
    TINY.name: ("Embeds texts", {"Dimensions": "16"}),
    RANKER.name: ("Scores pairs (cross-encoder)", {"Labels": "1"}),
    SPARSE.name: ("Weighs words (sparse)", {"Words": "16"}),
    LATE.name: ("Embeds each token (multi-vector)", {"Dimensions": "16"}),
}


@pytest.mark.parametrize("name", TASKS)
def test_each_task_is_told_and_loaded(visit: Visit, service: str, name: str) -> None:
    """By the smallest request that such a model takes."""
    for other in (each for each in (TINY.name, MINILM, RANKER.name) if each != name):
        path = "predict" if other == RANKER.name else "embed"
        http_post(f"{service}/{path}", json={"model": other, "inputs": "w1"}).raise_for_status()
    page = visit()
    load = _card(page, name).get_by_role("button", name=f"Load {name}")
    load.click()
    until(page, lambda: _state(page, name) == "warm")
    does, size = TASKS[name]
    assert does in _card(page, name).inner_text()
    assert size.items() <= facts(_card(page, name)).items()
    assert "did not load" not in page.get_by_role("log").inner_text()


def test_loads_and_evictions_are_seen_as_they_happen(visit: Visit, service: str) -> None:
    """There is room for two models: the third takes the place of the one that was used longest ago."""
    http_post(f"{service}/embed", json={"model": MINILM, "inputs": "a"})
    page = visit()
    until(page, lambda: _state(page, MINILM) == "warm")
    log = page.get_by_role("log")
    seen = 0
    for name in (TINY.name, RANKER.name):
        if _state(page, name) != "cold":
            continue
        load = _card(page, name).get_by_role("button", name=f"Load {name}")
        load.focus()
        page.keyboard.press("Enter")
        until(page, partial(_holds, log, f"{name} is warm"))
        assert _state(page, name) == "warm"
        assert not load.is_visible()
        seen += 1
    assert seen
    until(page, lambda: "was evicted" in log.inner_text())
    until(page, lambda: "2 in memory" in page.locator("#models-sum").inner_text())
    told = http_get(f"{service}/ready").json()["models"]
    # A bulk job's model stands there with its revision, beside the same one without.
    warm = {each["name"].partition("@")[0] for each in told if each["state"] == "warm"}
    names = {MINILM, TINY.name, RANKER.name}
    until(page, lambda: {name for name in names if _state(page, name) == "warm"} == warm)


def test_a_model_that_fails_says_why(visit: Visit, service: str) -> None:
    """In the words of /ready."""
    page = visit()
    _card(page, BROKEN.name).wait_for()
    if _state(page, BROKEN.name) == "cold":
        _card(page, BROKEN.name).get_by_role("button").click()
    until(page, lambda: _state(page, BROKEN.name) == "failed")
    answer = http_get(f"{service}/ready").json()["models"]
    [told] = [each for each in answer if each["name"] == BROKEN.name]
    assert told["reason"] in _card(page, BROKEN.name).inner_text(), json.dumps(told)


def test_a_service_that_goes_away_is_missed(visit: Visit) -> None:
    """And found again."""
    page = visit()
    _card(page, MINILM).wait_for()
    page.context.set_offline(True)
    until(page, lambda: "does not answer" in page.locator("#reach").inner_text())
    page.context.set_offline(False)
    until(page, lambda: page.locator("#reach").inner_text() == "")
