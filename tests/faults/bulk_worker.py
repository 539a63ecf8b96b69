"""A process that works on bulk jobs, and that a test can hold at any moment of one.

`python -m tests.faults.bulk_worker FOLDER PART NUMBER`: the local service's driver and models, without
HTTP. From its NUMBER-th write of a blob that has PART in its name on, it writes none of those: it makes
FOLDER/reached, and waits for FOLDER/go-on. What a dead process held comes back sooner than elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from msgspec.structs import replace

from functions.bulk.steps import build_bulk
from functions.cpu import create_inference
from functions.local.driver import Driver, Pace
from shared.settings import Settings
from shared.storage.blobs import Blobs
from shared.storage.connect import open_storage

REACHED, GO_ON = "reached", "go-on"


class Halting:
    """Blobs that halt their writer when it has written so many."""

    def __init__(self, blobs: Blobs, folder: Path, part: str, number: int) -> None:
        self._blobs = blobs
        self._folder = folder
        self._part = part
        self._left = number
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    def create(self, key: str, data: bytes | Path) -> bool:
        created = self._blobs.create(key, data)
        self._wrote(key)
        return created

    def write_stream(
        self, key: str, blocks: Iterable[bytes], metadata: Mapping[str, str] | None = None
    ) -> None:
        def watched() -> Iterator[bytes]:
            for block in blocks:
                yield block
                self._wrote(key)

        self._blobs.write_stream(key, watched(), metadata)

    def _wrote(self, key: str) -> None:
        if self._part not in key:
            return
        with self._lock:
            self._left -= 1
            halts = self._left <= 0
        if halts:
            (self._folder / REACHED).touch()
            while not (self._folder / GO_ON).exists():
                time.sleep(0.01)


async def _work(folder: Path, part: str, number: int) -> None:
    settings = Settings.from_env(os.environ)
    storage = open_storage(settings)
    storage = replace(storage, out=cast(Blobs, Halting(storage.out, folder, part, number)))
    bulk = build_bulk(settings, storage, create_inference(settings))
    await Driver(bulk, storage, "cpu", Pace(hidden_s=2, retry_s=2)).run()


if __name__ == "__main__":
    asyncio.run(_work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
