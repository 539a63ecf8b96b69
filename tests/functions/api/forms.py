"""Uploads and batches over a storage: the app, its forms, and a caller played message by message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, cast

import httpx
from msgspec.structs import replace
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message

from functions.api import batches
from functions.api.app import create_app
from functions.api.openapi import DescribedApp
from functions.bulk.steps import steps_of
from shared.bulk.inputs.allowance import NO_LIMITS
from shared.bulk.pipeline import Bulk
from shared.contracts import EmbedRequest, EmbedResult
from shared.models.catalogue import Catalogue
from shared.observability.metrics import Telemetry
from shared.routing.policy import policy_of
from shared.settings import Settings
from shared.storage.blobs import Storage
from tests.fakes.backend import FakeBackend

BOUNDARY = "b0undary"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"input":"w1"}}\n'


def batches_app(
    storage: Storage, *, clock: Callable[[], float] = time.time, grace_s: float = 60, **settings: Any
) -> DescribedApp:
    given = Settings(**settings)
    backend = FakeBackend()
    return create_app(
        given,
        backend,
        cast(Catalogue, backend),
        Telemetry(CollectorRegistry()),
        batches=batches.Batches(storage, given, clock=clock, grace_s=grace_s),
    )


def batches_client(storage: Storage, **settings: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(batches_app(storage, **settings))
    return httpx.AsyncClient(transport=transport, base_url="http://router")


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    disposition = f'form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    return b"--%b\r\nContent-Disposition: %b\r\n\r\n%b\r\n" % (
        BOUNDARY.encode(),
        disposition.encode(),
        value,
    )


END = f"--{BOUNDARY}--\r\n".encode()
PURPOSE, FILE = part("purpose", b"batch"), part("file", LINE, "a.jsonl")


async def upload(client: httpx.AsyncClient, content: bytes = LINE) -> str:
    body = PURPOSE + part("file", content, "a.jsonl") + END
    response = await client.post("/v1/files", content=body, headers=FORM)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def batch_of(file_id: str, **changes: Any) -> dict[str, Any]:
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    return body | changes


class Models(FakeBackend):
    """Takes a pinned name for the name."""

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        return await super().embed(replace(request, model=request.model.partition("@")[0]))


def bulk_of(storage: Storage, clock: Callable[[], float] = time.time) -> Bulk:
    backend = Models("mini")
    return Bulk(
        storage,
        cast(Catalogue, backend),
        policy_of(Settings()),
        backend=backend,
        devices=("cpu",),
        request_tokens=10_000,
        limits=NO_LIMITS,
        max_inputs=100,
        default_model="mini",
        clock=clock,
    )


def take(storage: Storage, queue: str) -> bytes | None:
    """A message, out of the queue."""
    message = storage.queue(queue).receive(visible_after_s=60)
    if message is None:
        return None
    storage.queue(queue).delete(message)
    return message.body


async def drain(storage: Storage, bulk: Bulk) -> None:
    """Work off every queue, in the order of the steps."""
    for step in steps_of(bulk, "cpu"):
        while (body := take(storage, step.queue)) is not None:
            await step.run(body)


class Caller:
    """One request, told to the app message by message; it waits when there are no more.

    taken: how many messages of the answer it takes before it stalls.
    """

    def __init__(
        self, *messages: Message, more: Iterable[Message] = (), key: str = "", taken: int = 1_000_000
    ) -> None:
        self._messages = chain(messages, more)
        self._headers = [(b"api-key", key.encode())] if key else []
        self._taken = taken
        self.stalled = asyncio.Event()
        self.waits = asyncio.Event()
        self.more: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.sent: list[Message] = []

    async def run(self, app: ASGIApp, method: str = "POST", path: str = "/v1/files") -> None:
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", FORM["content-type"].encode()), *self._headers],
        }
        await app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if (message := next(self._messages, None)) is not None:
            return message
        self.waits.set()
        return await self.more

    async def _send(self, message: Message) -> None:
        if len(self.sent) == self._taken:
            self.stalled.set()
            await asyncio.Event().wait()
        self.sent.append(message)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


BEGUN: Message = {
    "type": "http.request",
    "body": PURPOSE + part("file", LINE, "a.jsonl")[:-10],
    "more_body": True,
}
