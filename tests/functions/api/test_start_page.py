"""The page for people: who gets it, what it may do, and that nothing of it comes from elsewhere.

What it shows and does is tested in a browser: tests/page.
"""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from functions.api.start_page import FOLDER, START
from tests.apps import router_client
from tests.fakes.backend import FakeBackend

CHROMIUM = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
KEYS = {"api_key_hashes": (hashlib.sha256(b"secret").hexdigest(),)}
FILES = sorted(FOLDER.iterdir())
CONTENTS = {path.name: path.read_bytes() for path in FILES}
MAX_BYTES = 100_000


@pytest.mark.anyio
@pytest.mark.parametrize("accept", [CHROMIUM, "text/html", "application/json, Text/HTML;q=0.1"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_browser_gets_the_page(accept: str, method: str) -> None:
    async with router_client(FakeBackend()) as client:
        response = await client.request(method, "/", headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["vary"] == "Accept"
    assert response.content == (b"" if method == "HEAD" else CONTENTS[START])


@pytest.mark.anyio
@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/*", "application/xhtml+xml", ""])
@pytest.mark.parametrize("page", [True, False])
async def test_other_clients_are_told_of_the_post(accept: str, page: bool) -> None:
    """As ever: / is a route of Text Embeddings Inference."""
    async with router_client(FakeBackend(), page=page) as client:
        response = await client.get("/", headers={"accept": accept})
        posted = await client.post("/", json={"inputs": "abc"}, headers={"accept": accept})
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"]["message"] == "send POST to /: see /docs"
    assert (posted.status_code, len(posted.json())) == (200, 1)


@pytest.mark.anyio
async def test_a_post_of_a_browser_is_no_visit() -> None:
    async with router_client(FakeBackend()) as client:
        response = await client.post("/", json={"inputs": "abc"}, headers={"accept": CHROMIUM})
    assert response.headers["content-type"] == "application/json"


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/", *(f"/page/{path.name}" for path in FILES if path.name != START)])
async def test_a_setting_turns_it_off(path: str) -> None:
    """All of it."""
    async with router_client(FakeBackend(), page=False) as off, router_client(FakeBackend()) as on:
        assert (await on.get(path, headers={"accept": CHROMIUM})).status_code == 200
        assert (await off.get(path, headers={"accept": CHROMIUM})).status_code in (404, 405)


@pytest.mark.anyio
async def test_it_needs_no_key_and_opens_nothing_else() -> None:
    """A browser has none before its visitor has typed one into the page."""
    async with router_client(FakeBackend(), **KEYS) as client:
        for path in ("/", "/page/app.js"):
            assert (await client.get(path, headers={"accept": CHROMIUM})).status_code == 200
        for method, path in (
            *(("GET", path) for path in ("/v1/models", "/ready", "/metrics", "/page", "/page/nope.js")),
            *(("GET", path) for path in ("/page/index.html", "/page/%2e%2e/start_page.py", "/docs")),
            ("POST", "/"),
            ("POST", "/page/app.js"),
        ):
            response = await client.request(method, path, headers={"accept": CHROMIUM})
            assert response.status_code == 401, path


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name", ["nope.js", "../start_page.py", "%2e%2e/auth.py", "", START, "app.js/x"]
)
async def test_only_the_pages_files_are_served(name: str) -> None:
    async with router_client(FakeBackend()) as client:
        response = await client.get(f"/page/{name}")
    assert response.status_code == 404


@pytest.mark.anyio
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
async def test_a_file_is_typed_and_asked_for_once(path: Path) -> None:
    """A browser refuses a module that is no JavaScript; what has not changed is not sent again."""
    content = CONTENTS[path.name]
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    url = "/" if path.name == START else f"/page/{path.name}"
    async with router_client(FakeBackend()) as client:
        first = await client.get(url, headers={"accept": CHROMIUM})
        again = {"accept": CHROMIUM, "if-none-match": first.headers["etag"]}
        second = await client.get(url, headers=again)
    assert first.content == content
    assert first.headers["content-type"].partition(";")[0] == types[path.suffix]
    assert (second.status_code, second.content) == (304, b"")
    for name, value in (("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")):
        assert first.headers[name] == value
    _check_policy(first)


def _check_policy(response: httpx.Response) -> None:
    policy = dict(
        each.split(maxsplit=1) for each in response.headers["content-security-policy"].split("; ")
    )
    assert policy.pop("default-src") == "'none'"
    assert {name for name, value in policy.items() if value == "'self'"} == {
        *("script-src", "style-src", "img-src", "connect-src")
    }
    assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]


def test_it_is_small() -> None:
    """A phone on a train reads it."""
    assert sum(path.stat().st_size for path in FILES) < MAX_BYTES


class _Markup(HTMLParser):
    """Every tag with its attributes, and what stands within scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.inline += data


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    """The policy would refuse it: a browser would show a broken page."""
    markup = _Markup()
    markup.feed((FOLDER / START).read_text("utf-8"))
    named = {path.name for path in FILES}
    for tag, attributes in markup.tags:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        if tag in ("script", "img", "link"):
            source = attributes.get("src") or attributes.get("href") or ""
            assert source.removeprefix("page/") in named, source
    assert markup.inline == ""
    for path in FILES:
        text = path.read_text("utf-8")
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
        assert set(re.findall(r"https?://[^\"`\s]+", text)) <= {"http://www.w3.org/2000/svg"}, path.name
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= named


def test_every_file_is_used() -> None:
    """By the page itself, or by a file that it loads."""
    text = "".join(path.read_text("utf-8") for path in FILES)
    assert [path.name for path in FILES if path.name != START and f"/{path.name}" not in text] == []


@pytest.mark.anyio
async def test_it_works_behind_a_prefix() -> None:
    """A gateway's: its links are relative, and the page asks for what lies beside it."""
    async with router_client(FakeBackend()) as client:
        page = (await client.get("/", headers={"accept": CHROMIUM})).text
    links = re.findall('(?:href|src)="([^"#]+)"', page)
    assert links
    assert [link for link in links if link.startswith(("/", "http"))] == []
