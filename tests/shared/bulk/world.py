"""A bulk job's whole world in memory: inputs, storage, models, a clock; and its processes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any, cast

import pyarrow.parquet as pq
from prometheus_client import CollectorRegistry

from shared.backends.base import Backend
from shared.bulk import jobs
from shared.bulk.control import SPLIT
from shared.bulk.inputs.allowance import NO_LIMITS
from shared.bulk.jobs import Status
from shared.bulk.pipeline import Bulk
from shared.cards import Device
from shared.observability.metrics import Telemetry
from shared.routing.policy import fixed
from tests.fakes.catalogue import FakeCatalogue, bulk_cards
from tests.fakes.embedder import FakeEmbedder
from tests.fakes.memory import Memory, drain

KEY = "mini/texts.jsonl"
ROWS = 1200
INPUT = b"".join(
    json.dumps({"id": f"id-{row}", "text": f"text {row}", "n": row}).encode() + b"\n"
    for row in range(ROWS)
)


class World:
    def __init__(self, devices: Sequence[Device] = ("cpu",)) -> None:
        self.now = 1000.0
        self.memory = Memory(lambda: self.now)
        self.catalogue = FakeCatalogue(bulk_cards())
        self.backend = FakeEmbedder()
        self.devices = devices
        self.limits = NO_LIMITS
        self.default_model = ""
        self.aliases: dict[str, str] = {}
        self.metrics = Telemetry(CollectorRegistry())

    def bulk(self) -> Bulk:
        """A new process: nothing is remembered."""
        return Bulk(
            self.memory.storage,
            self.catalogue,
            fixed(10),
            backend=cast(Backend, self.backend),
            devices=self.devices,
            request_tokens=10_000,
            max_inputs=2048,
            limits=self.limits,
            default_model=self.default_model,
            aliases=self.aliases,
            clock=lambda: self.now,
            metrics=self.metrics,
        )

    async def put(self, data: bytes = INPUT, key: str = KEY, **metadata: str) -> str:
        """Write an input and send its event; its ETag."""
        self.memory.source.write(key, data, metadata)
        stat = self.memory.source.stat(key)
        assert stat
        await self.bulk().submit(key, stat.etag)
        return stat.etag

    def take(self, queue: str) -> bytes:
        """A message, out of the queue."""
        message = self.memory.queue(queue).receive(visible_after_s=1)
        assert message
        self.memory.queue(queue).delete(message)
        return message.body

    async def begin(self, data: bytes = INPUT) -> str:
        """Put an input and split it; its job's id."""
        await self.put(data)
        job_id = await self.bulk().split(self.take(SPLIT))
        assert job_id
        return job_id

    async def rejected(self, data: bytes, key: str, **metadata: str) -> Status:
        """Of an input that cannot become a job, after all was done that there is to do."""
        await self.put(data, key, **metadata)
        await self.drain()
        (manifest,) = self.manifests()
        assert manifest.status.status == "failed"
        return manifest.status

    async def drain(self, **options: bool) -> None:
        await drain(self.memory, self.bulk(), **options)

    def table(self, key: str = f"{KEY}.parquet") -> Any:
        return pq.read_table(io.BytesIO(self.memory.out.blobs[key][0]))

    def outputs(self) -> dict[str, bytes]:
        """What callers get: not the state of jobs."""
        own = ("jobs/", "events/", "active/")
        return {k: v[0] for k, v in self.memory.out.blobs.items() if not k.startswith(own)}

    def manifests(self) -> list[jobs.JobManifest]:
        return [
            jobs.decode(data, jobs.JobManifest)
            for key, (data, _) in self.memory.out.blobs.items()
            if key.endswith("manifest.json")
        ]


def batch_line(custom_id: str, input: object, **body: object) -> bytes:
    request = {"method": "POST", "url": "/v1/embeddings", "body": {"input": input, **body}}
    return json.dumps({"custom_id": custom_id, **request}).encode() + b"\n"
