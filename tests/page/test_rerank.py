"""The section Rerank: orders and scores are the service's, with where each document came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.page.world import BROKEN, DESKTOP, MINILM, PHONE, RANKER, TINY, Page, Visit, until

QUERY = "w1 w2"
OFFERED = {"model": {RANKER.name}, "cosine": {MINILM, TINY.name, "nick", BROKEN.name}}
DOCUMENTS = ["w3 w4", "w1 w2 w5", "w9", "w2"]


def _rerank(page: Page) -> None:
    until(page, lambda: page.locator("#rerank-cosine option").count() > 1)
    page.locator("#rerank-cosine").select_option(TINY.name)
    page.locator("#rerank-texts").fill("\n".join(DOCUMENTS))
    page.locator("#rerank-query").fill(QUERY)
    page.keyboard.press("Control+Enter")
    until(page, lambda: "4 documents" in page.locator("#rerank-status").inner_text())


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_three_orders_stand_beside_each_other(visit: Visit, viewport: dict[str, int]) -> None:
    page = visit("rerank", viewport=viewport)
    _rerank(page)
    asked, given = (TINY.prompts[name] for name in ("query", "document"))
    documents = TINY.vectors([given + document for document in DOCUMENTS])
    cosines = documents @ TINY.vectors([asked + QUERY])[0]
    scores = RANKER.scores(QUERY, DOCUMENTS)
    orders = [list(range(4)), *(list(np.argsort(-told)) for told in (cosines, scores))]
    columns = page.locator("#rerank-result article")
    assert columns.count() == 3
    for at, order in enumerate(orders):
        column = columns.nth(at)
        lines = [int(each) - 1 for each in column.locator(".count").all_inner_texts()]
        assert lines == order
        assert column.locator(".name").all_inner_texts() == [DOCUMENTS[line] for line in order]
        if at:
            told = np.array(column.locator(".score").all_inner_texts(), float)
            assert np.abs(told - np.sort((cosines, scores)[at - 1])[::-1]).max() < 0.00051
            moves = [orders[at - 1].index(line) - place for place, line in enumerate(order)]
            shown = [each.split() for each in column.locator(".move").all_text_contents()]
            words = [
                ["same"]
                if move == 0
                else [f"{'▲' if move > 0 else '▼'}{'up' if move > 0 else 'down'}", f"{abs(move)}"]
                for move in moves
            ]
            assert shown == words
    assert TINY.name in columns.nth(1).inner_text()
    assert RANKER.name in columns.nth(2).inner_text()
    assert "Inference" in columns.nth(2).inner_text()


def test_the_document_under_the_pointer_is_marked_everywhere(visit: Visit) -> None:
    page = visit("rerank")
    _rerank(page)
    page.locator("#rerank-result article").nth(1).locator("li").first.hover()
    seen = page.locator("#rerank-result li.seen")
    assert seen.count() == 3
    assert len(set(seen.locator(".name").all_inner_texts())) == 1


def test_what_is_wrong_is_said(visit: Visit) -> None:
    page = visit("rerank")
    until(page, lambda: page.locator("#rerank-cosine option").count() > 1)
    assert page.locator("#rerank-cosine option").first.inner_text() == MINILM
    page.locator("#rerank-texts").fill("")
    page.get_by_role("button", name="Rerank").click()
    until(page, lambda: "at least one document" in page.locator("#rerank-status").inner_text())


def test_only_what_reranks_is_offered(visit: Visit) -> None:
    """A cross-encoder of several labels is a classifier, and a sparse model gives no scores."""

    def add_a_classifier(route: Any) -> None:
        answer = route.fetch()
        told = answer.json()
        ranker = next(each for each in told["data"] if each["id"] == RANKER.name)
        builds = [{**build, "labels": ["yes", "no", "maybe"]} for build in ranker["builds"]]
        told["data"].append({**ranker, "id": "classifier", "root": "classifier", "builds": builds})
        route.fulfill(response=answer, json=told)

    page = visit(routes={"**/v1/models": add_a_classifier}, section="rerank")
    page.get_by_role("link", name="Models").click()
    page.get_by_role("heading", name="classifier").wait_for()
    offered = {name: page.locator(f"#rerank-{name} option").all_text_contents() for name in OFFERED}
    assert {name: set(options) for name, options in offered.items()} == OFFERED
