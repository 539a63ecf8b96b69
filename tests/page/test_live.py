"""The section Live: rates and quantiles of what the service counts."""

from __future__ import annotations

from functools import partial

from tests.apps import router_app
from tests.fakes.backend import FakeBackend
from tests.page.world import MINILM, Page, Visit, until
from tests.server import http_post, metrics_of
from tests.sockets import serving


def _tile(page: Page, name: str) -> Page:
    return page.locator(".tile", has=page.get_by_text(name, exact=True))


def _value(page: Page, name: str) -> str:
    return str(_tile(page, name).locator("b").inner_text())


def _is_told(page: Page, name: str) -> bool:
    return _value(page, name) != "\u2013"


def _number(page: Page, name: str) -> float:
    """0 while there is none."""
    return float(_value(page, name).replace(",", "").replace("\u2013", "0"))


def test_what_happens_is_counted(visit: Visit, service: str) -> None:
    page = visit("live")
    until(page, lambda: _is_told(page, "Evictions"))
    for _ in range(5):
        http_post(f"{service}/embed", json={"model": MINILM, "inputs": ["a text", "another"]})
    until(page, lambda: _number(page, "Requests") > 0)
    until(page, lambda: _value(page, "95 % are answered within").endswith(("ms", "s")))
    until(page, lambda: _number(page, "Texts in a micro-batch") >= 1)
    until(page, lambda: _value(page, "Cache hits").endswith("%"))
    counted = metrics_of(service)
    loads, evictions = counted["blitz_cache_load_duration_count"], counted["blitz_cache_evictions"]
    until(page, lambda: _number(page, "Loads") == loads)
    assert _number(page, "Evictions") == evictions
    assert _number(page, "Models in memory") == counted["blitz_cache_models"]
    assert _number(page, "Queue") == 0
    for name in ("Texts", "Half are answered within", "Bulk rows"):
        until(page, partial(_is_told, page, name))
    assert _tile(page, "Requests").locator("path").last.get_attribute("d").startswith("M")


def test_what_backends_count_is_not_told_as_nothing(visit: Visit) -> None:
    """Of a router that embeds, and has no model itself."""
    backends = (
        "Queue",
        "Texts in a micro-batch",
        "Cache hits",
        "Models in memory",
        "Loads",
        "Evictions",
    )
    with serving(router_app(FakeBackend())) as port:
        url = f"http://127.0.0.1:{port}"
        page = visit("live", url=url)
        until(page, lambda: _number(page, "Queue") == 0 and _is_told(page, "Queue"))
        http_post(f"{url}/embed", json={"inputs": ["a text", "another"]}).raise_for_status()
        until(page, lambda: "/metrics of the backends" in _tile(page, "Queue").inner_text())
        assert [name for name in backends if _is_told(page, name)] == []
        assert [name for name in ("Requests", "Texts", "Bulk rows") if not _is_told(page, name)] == []


def test_it_asks_only_while_it_is_looked_at(visit: Visit) -> None:
    asked: list[str] = []
    page = visit("models")
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    until(page, lambda: "ready" in asked)
    assert "metrics" not in asked
    page.get_by_role("link", name="Live").click()
    until(page, lambda: "metrics" in asked)
    page.get_by_role("link", name="Rerank").click()
    page.wait_for_timeout(100)
    before = asked.count("metrics")
    until(page, lambda: asked.count("ready") >= 4)
    assert asked.count("metrics") <= before + 1


_COUNT_WAITING = """() => {
    const set = setTimeout, clear = clearTimeout;
    window.waiting = new Set();
    window.setTimeout = (does, ms) => {
        const id = set(() => { waiting.delete(id); does(); }, ms);
        if (ms === 2000) waiting.add(id);
        return id;
    };
    window.clearTimeout = (id) => { waiting.delete(id); clear(id); };
}"""
"""Counts what waits for so long as Live does from one look to the next."""


def test_it_asks_no_more_often_for_who_comes_and_goes(visit: Visit) -> None:
    """Each time within the wait of the last visit."""
    asked: list[str] = []
    page = visit("models")
    page.evaluate(_COUNT_WAITING)
    page.on("requestfinished", lambda request: asked.append(request.url.rpartition("/")[2]))
    for visits in range(1, 5):
        page.get_by_role("link", name="Live").click()
        until(page, lambda: page.evaluate("waiting.size") > 0)
        assert page.evaluate("waiting.size") == 1, visits
        if visits < 4:
            page.get_by_role("link", name="Rerank").click()
    before = asked.count("metrics")
    until(page, lambda: asked.count("metrics") > before)
    assert page.evaluate("waiting.size") <= 1
