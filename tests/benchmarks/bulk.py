"""Bulk jobs by real worker processes over a folder: what they cost beside the model, how they scale.

`python -m tests.benchmarks.bulk 2000` measures fewer rows than `make bench`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shared.bulk import control, jobs
from shared.models.store import open_store_url
from shared.settings import Settings
from shared.storage.blobs import Storage
from shared.storage.connect import open_storage
from tests.benchmarks import engines
from tests.benchmarks.corpus import SHARED_DATA, load_texts
from tests.benchmarks.service import MODEL
from tests.benchmarks.turns import take_turns
from tests.server import ROOT

ROWS, ROUNDS = 5_000, 9
_POLL_S = 0.1

# The local service's driver with a model and without HTTP. It looks at empty queues more often: how
# long a queue trigger sleeps is its host's business, and would be half of a short job.
_WORKER = f"""
import asyncio, os, sys
import numpy as np
from functions.bulk.steps import build_bulk
from functions.cpu import create_inference
from functions.local.driver import Driver, Pace
from shared.contracts import EmbedRequest, EmbedResult
from shared.settings import Settings
from shared.storage.connect import open_storage
class Free:
    async def run(self, request):
        n = len(request.inputs)
        return EmbedResult(np.zeros((n, 384), np.float32), (1,) * n, request.model, "")
async def work():
    settings = Settings.from_env(os.environ)
    inference = Free() if sys.argv[1] == "free" else create_inference(settings)
    storage = open_storage(settings)
    await inference.run(EmbedRequest("{MODEL}", ("hello",)))
    print("ready", flush=True)
    bulk = build_bulk(settings, storage, inference)
    await Driver(bulk, storage, "cpu", Pace(poll_s={_POLL_S})).run()
asyncio.run(work())
"""


def run(store: Path, rows: int = ROWS, rounds: int = ROUNDS) -> dict[str, float]:
    """Texts per second and milliseconds; nothing where the real texts are not beside the checkout."""
    if not SHARED_DATA.is_dir():
        return {}
    _, some = load_texts(4000)
    texts = [
        some[n % len(some)] if n < len(some) else f"{some[n % len(some)]} ({n})" for n in range(rows)
    ]
    with tempfile.TemporaryDirectory() as cache:
        models = open_store_url(f"file://{store}", cache_dir=Path(cache), cache_disk_bytes=10**9)
        embed = engines.ours(*models.fetch(MODEL, models.current(MODEL, "cpu")))
        embed(texts[:64])

        def bare_s() -> float:
            started = time.perf_counter()
            embed(texts)
            return time.perf_counter() - started

        def job_s(threads: int = 0, workers: int = 1) -> float:
            return _job(store, texts, threads=threads, workers=workers)[0]

        turns = take_turns(
            {
                "bare": bare_s,
                "job": job_s,
                "single": lambda: job_s(threads=1),
                "double": lambda: job_s(threads=1, workers=2),
            },
            rounds,
        )
    # Not the difference of the two above: that is small, and the machine's moods are not.
    free_s, chunks = _job(store, texts, model="free")
    return {
        "rows": float(rows),
        "bare engine, texts/s": rows / turns.of("bare").median,
        "job, one worker, texts/s": rows / turns.of("job").median,
        **turns.ratio("bare", "job").figures("job / bare"),
        "all but the model, ms per chunk": 1000 * free_s / chunks,
        "1 worker of 1 thread, texts/s": rows / turns.of("single").median,
        "2 workers of 1 thread, texts/s": rows / turns.of("double").median,
        **turns.ratio("single", "double").figures("2 workers / 1"),
    }


def _job(
    store: Path, texts: list[str], *, threads: int = 0, workers: int = 1, model: str = "real"
) -> tuple[float, int]:
    """Seconds from the input's arrival to the job's manifest, with every row embedded; and its chunks.

    model: "free" has an answer at once.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        environ = {
            "BLITZ_ROLE": "cpu",
            "BLITZ_MODEL_STORE": f"file://{store}",
            "BLITZ_STORAGE": f"file://{folder}",
            "BLITZ_THREADS": str(threads),
        }
        processes = [running.enter_context(_worker(environ, model)) for _ in range(workers)]
        storage = open_storage(Settings(storage=environ["BLITZ_STORAGE"]))
        key = f"{MODEL}/rows.jsonl"
        storage.source.write(
            key, b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
        )
        stat = storage.source.stat(key)
        assert stat is not None
        started = time.perf_counter()
        while (manifest := _manifest(storage, key, stat.etag)) is None:
            assert all(process.poll() is None for process in processes)
            time.sleep(_POLL_S)
        seconds = time.perf_counter() - started
        assert manifest.status.request_counts.completed == len(texts)
        split = storage.out.read(f"jobs/{manifest.job.id}/split.json")
        assert split is not None
        return seconds, jobs.decode(split, jobs.Split).chunks


def _manifest(storage: Storage, key: str, etag: str) -> jobs.JobManifest | None:
    """None until the job has ended."""
    job = control.find_job(storage.out, "source", key, etag)
    return control.read_manifest(storage.out, job) if job else None


@contextmanager
def _worker(environ: dict[str, str], model: str) -> Iterator[subprocess.Popen[str]]:
    """Ready, with its model loaded."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKER, model],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    for name, value in run(ROOT / ".blitz" / "models", int(sys.argv[1])).items():
        print(f"{name}: {value:.3f}")
