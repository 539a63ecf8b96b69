"""What stands between a caller and the engine: one short text, asked in turns in every way there is.

Each value is the median of CALLS calls. The client is a bare socket: a client library would take as long
as the service does.
"""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from shared.contracts import EmbedRequest
from shared.models.store import open_store_url
from shared.wire import codec, messages
from tests.benchmarks import engines
from tests.benchmarks.service import MODEL
from tests.benchmarks.turns import take_turns
from tests.server import free_port, started_service, wait_until_ready

TEXT = "how do I reset my password?"
CALLS, ROUNDS = 100, 15


class Caller:
    """One kept connection that sends the same request again and again."""

    def __init__(self, url: str, path: str, body: bytes, media_type: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\naccept: */*\r\n"
            f"content-type: {media_type}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body

    def ask(self) -> None:
        """Send it, and read the answer, which must be a 200 with a length."""
        self._socket.sendall(self._request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._more()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), answer
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        while len(body) < length:
            body += self._more()

    def _more(self) -> bytes:
        data = self._socket.recv(1 << 16)
        assert data, "the server closed the connection"
        return data


def run(store: Path, work: Path) -> dict[str, float]:
    """Milliseconds, and how many more than the bare engine and than the backend; no text is compared."""
    url, port = f"file://{store}", free_port()
    backend = f"http://127.0.0.1:{port}"
    models = open_store_url(url, cache_dir=work, cache_disk_bytes=10**9)
    bare = engines.alone(*models.fetch(MODEL, models.current(MODEL, "cpu")))
    spoken = json.dumps({"model": MODEL, "input": TEXT, "encoding_format": "base64"}).encode()
    packed = messages.pack_request(EmbedRequest(MODEL, (TEXT,)))
    with ExitStack() as running:
        services = [
            running.enter_context(started_service(url)),
            running.enter_context(started_service(url, environ={"BLITZ_ROLE": "cpu"}, port=port)),
            running.enter_context(started_service(url, environ={"BLITZ_CPU_BACKEND_URL": backend})),
        ]
        for address, process in services:
            wait_until_ready(address, process)
        whole, _, router = (address for address, _ in services)
        turns = take_turns(
            {
                "bare engine": _median_ms(lambda: bare([TEXT])),
                "one process": _median_ms(
                    Caller(whole, "/v1/embeddings", spoken, "application/json").ask
                ),
                "backend": _median_ms(Caller(backend, "/embed", packed, codec.CONTENT_TYPE).ask),
                "router": _median_ms(Caller(router, "/v1/embeddings", spoken, "application/json").ask),
            },
            ROUNDS,
        )
    return {
        **{f"{name}, ms": turns.of(name).median for name in turns.measured},
        **turns.difference("one process", "bare engine").figures(
            "one process above the bare engine, ms"
        ),
        **turns.difference("router", "one process").figures("a separate router above one process, ms"),
        **turns.difference("router", "backend").figures("a router above its backend, ms"),
    }


def _median_ms(ask: Callable[[], object]) -> Callable[[], float]:
    def measure() -> float:
        times = []
        for _ in range(CALLS):
            started = time.perf_counter()
            ask()
            times.append((time.perf_counter() - started) * 1e3)
        return statistics.median(times)

    measure()
    return measure
