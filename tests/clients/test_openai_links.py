"""OpenAI's own clients where a download is a redirect to the storage account."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from openai import AzureOpenAI, OpenAI

KEY = "a-key-of-a-caller"


class Servers:
    """A router that redirects, and an account at another address. asked: the account's headers."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []

        class Account(_Silent):
            def do_GET(handler) -> None:
                self.asked.append({name.lower(): value for name, value in handler.headers.items()})
                handler.answer(200, {}, b"content")

        class Router(_Silent):
            def do_GET(handler) -> None:
                handler.answer(
                    302, {"location": f"http://localhost:{self._account.server_port}/f?sig=s"}, b""
                )

        self._account = ThreadingHTTPServer(("127.0.0.1", 0), Account)
        self._router = ThreadingHTTPServer(("127.0.0.1", 0), Router)
        for server in (self._account, self._router):
            Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._router.server_port}"

    def close(self) -> None:
        for server in (self._account, self._router):
            server.shutdown()
            server.server_close()


class _Silent(BaseHTTPRequestHandler):
    def log_message(self, *told: Any) -> None:
        pass

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.close()


@pytest.mark.parametrize(
    "client_of",
    [
        lambda url: OpenAI(base_url=f"{url}/v1", api_key=KEY),
        lambda url: AzureOpenAI(base_url=f"{url}/openai", api_key=KEY, api_version="2024-10-21"),
    ],
    ids=["openai", "azure"],
)
def test_a_link_is_followed_and_no_key_goes_with_it(
    servers: Servers, client_of: Callable[[str], OpenAI]
) -> None:
    """Whole and streamed; the account sees neither kind of key."""
    with client_of(servers.url) as client:
        assert client.files.content("file-1").read() == b"content"
        with client.files.with_streaming_response.content("file-1") as response:
            assert response.read() == b"content"
    assert len(servers.asked) == 2
    for headers in servers.asked:
        assert KEY not in " ".join(headers.values())
