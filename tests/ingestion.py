"""A fake of Application Insights' ingestion endpoint: a real HTTP server that keeps what it is sent."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Ingestion:
    """posted: set when a post arrives. While `open` is not set, posts are kept waiting.

    status: of the answers to posts that arrive from now on; bodies: of those answered with 200.
    authorizations: of every post, in order; "" for none.
    """

    def __init__(self, port: int) -> None:
        self.key = str(uuid.uuid4())
        self.connection_string = (
            f"InstrumentationKey={self.key};IngestionEndpoint=http://127.0.0.1:{port}/;"
        )
        self.bodies: list[bytes] = []
        self.authorizations: list[str] = []
        self.posted = threading.Event()
        self.open = threading.Event()
        self.open.set()
        self.status = 200

    @property
    def envelopes(self) -> list[dict[str, Any]]:
        return [envelope for body in self.bodies for envelope in json.loads(body)]

    def of_type(self, name: str) -> list[dict[str, Any]]:
        """Envelopes of a baseType, such as RequestData."""
        return [each for each in self.envelopes if each["data"]["baseType"] == name]

    def metrics(self) -> dict[str, float]:
        """Sums by name, labels left out."""
        sums: dict[str, float] = {}
        for envelope in self.of_type("MetricData"):
            for point in envelope["data"]["baseData"]["metrics"]:
                sums[point["name"]] = sums.get(point["name"], 0.0) + point["value"]
        return sums


@contextmanager
def running_ingestion() -> Iterator[Ingestion]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = ingestion.status
            ingestion.authorizations.append(self.headers.get("authorization", ""))
            ingestion.posted.set()
            ingestion.open.wait()
            if status == 200:
                assert self.path == "/v2.1/track"
                ingestion.bodies.append(body)
            number = len(json.loads(body))
            answer = {"itemsReceived": number, "itemsAccepted": number, "errors": []}
            try:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())
            except ConnectionError:
                pass  # whoever sent it has given up

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    ingestion = Ingestion(server.server_port)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield ingestion
    finally:
        ingestion.open.set()
        server.shutdown()
        serving.join()
        server.server_close()
