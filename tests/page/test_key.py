"""Where keys are on the page asks for one, and holds it in its memory alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.apps import router_app
from tests.fakes.backend import FakeBackend
from tests.page.world import Visit, until
from tests.sockets import serving

KEY = "open sesame"


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    app = router_app(FakeBackend(), api_key_hashes=(hashlib.sha256(KEY.encode()).hexdigest(),))
    with serving(app) as port:
        yield f"http://127.0.0.1:{port}"


def test_a_key_is_asked_for_and_kept_nowhere(visit: Visit, locked: str) -> None:
    """A wrong one is told so; a reload, or a button, forgets it."""
    page = visit(url=locked)
    field = page.locator("#key-input")
    field.wait_for()
    assert page.evaluate("document.activeElement.id") == "key-input"
    assert field.get_attribute("type") == "password"
    field.fill("wrong")
    page.keyboard.press("Enter")
    until(page, lambda: "not valid" in page.locator("#key-why").inner_text())
    assert field.input_value() == ""
    field.fill(KEY)
    page.get_by_role("button", name="Use it").click()
    page.get_by_role("heading", name="mini").wait_for()
    kept = (
        "[document.cookie, localStorage.length, sessionStorage.length, location.search, history.state]"
    )
    assert page.evaluate(kept) == ["", 0, 0, "", None]
    assert KEY not in page.content()
    assert not page.get_by_role("link", name="Routes").is_visible()  # it would be answered 401
    page.get_by_role("button", name="Forget the key").click()
    field.wait_for()
    field.fill(KEY)
    page.keyboard.press("Enter")
    page.locator("#key-dialog").wait_for(state="hidden")
    page.reload()
    field.wait_for()


def test_a_visitor_without_a_key_is_asked_once(visit: Visit, locked: str) -> None:
    """And may change his mind; until then the page is there, and empty."""
    page = visit("live", url=locked)
    page.locator("#key-input").wait_for()
    page.keyboard.press("Escape")
    button = page.get_by_role("button", name="Enter a key")
    button.wait_for()
    page.get_by_role("link", name="Try it").click()
    page.get_by_role("button", name="Embed", exact=True).wait_for()
    page.wait_for_timeout(2000)
    assert not page.locator("#key-dialog").is_visible()
    button.click()
    page.locator("#key-input").fill(KEY)
    page.keyboard.press("Enter")
    until(page, lambda: page.locator("#try-model option").count() == 1)
