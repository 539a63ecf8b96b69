"""Cuts one input into chunks as a job does, and tells what came of it and how much memory it took.

    python -m tests.shared.bulk.bounded NAME FILE [SIZE TAIL]

SIZE, TAIL: the file's last TAIL bytes are repeated until it has SIZE bytes. A process of its own,
because a peak of memory is the process's.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from shared.bulk.inputs.allowance import Limits
from shared.bulk.inputs.detect import HEAD_BYTES, ReadOptions, detect_format
from shared.bulk.jobs import Job
from shared.bulk.options import JobOptions
from shared.bulk.paths import rows_of
from shared.bulk.steps.cutting import Cutter
from shared.errors import InvalidInput
from shared.observability.metrics import Telemetry
from shared.settings import Settings
from shared.storage.blobs import BlobStat, Storage

FREE_BYTES = 20_000_000  # so that a bomb is known as one in a test's time


class Input:
    """Of shared.storage.blobs.Blobs what is asked of an input."""

    def __init__(self, head: bytes, size: int, tail: int) -> None:
        self._head = head[: len(head) - tail]
        self._tail = head[len(head) - tail :]
        self.size = size

    def read_range(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        length = max(0, min(length, self.size - start))
        if start < len(self._head):
            return self._head[start : start + length]
        skip = (start - len(self._head)) % len(self._tail)
        times = (skip + length) // len(self._tail) + 1
        return (self._tail * times)[skip : skip + length]


class Output:
    """Keeps counts alone."""

    def __init__(self) -> None:
        self.rows = self.bytes = 0
        self.codes: Counter[str] = Counter()

    def create(self, key: str, data: bytes) -> bool:
        self.bytes += len(data)
        if "/chunks/" in key:
            self.rows += rows_of(key)
        if "/bad/" in key:
            self.codes.update(json.loads(line)["code"] for line in data.splitlines())
        return True

    def write(self, key: str, data: bytes) -> None:
        pass

    def read(self, key: str) -> None:
        return None

    def stat(self, key: str) -> BlobStat | None:
        return None

    def list(self, prefix: str) -> Iterator[BlobStat]:
        return iter(())

    def send(self, body: bytes) -> None:
        pass


def cut(name: str, blobs: Any) -> dict[str, Any]:
    settings, out = Settings(), Output()
    cutter = Cutter(
        Storage(blobs, out, lambda queue: out),  # type: ignore[arg-type, return-value]
        limits=Limits(settings.max_job_bytes, settings.max_job_rows, free_bytes=FREE_BYTES),
        max_inputs=settings.max_inputs,
        aliases={},
        clock=time.time,
        go_on=lambda: None,
        metrics=Telemetry(CollectorRegistry()),
    )
    error = None
    try:
        head = blobs.read_range(name, 0, HEAD_BYTES, etag="")
        form = detect_format(name, head, ReadOptions())
        job = Job(
            id="a" * 24,
            container="source",
            source=name,
            etag="",
            size=blobs.size,
            options=JobOptions(),
            revision="r",
            dimensions=8,
            device="cpu",
            created=0,
            kind=form.kind,
            compression=form.compression,
        )
        cutter.write(job, blobs)
    except InvalidInput as refused:
        error = refused.message
    return {"error": error, "rows": out.rows, "bytes": out.bytes, "codes": dict(out.codes)}


def peak_mib() -> tuple[float, float]:
    """Of this process and of the largest of its children, whose figure begins with its parent's."""
    own = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]
    return int(own) / 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    faulthandler.dump_traceback_later(240, exit=True)
    name, path, *repeated = sys.argv[1:]
    data = Path(path).read_bytes()
    size, tail = map(int, repeated) if repeated else (len(data), 0)
    found = cut(name, Input(data, size, tail))
    print(json.dumps({**found, "peaks_mib": peak_mib()}), flush=True)
    os._exit(0)  # libraries' threads may keep a process from its end


if __name__ == "__main__":
    main()
