"""What stands around the engine: HTTP, formats, the cache, and a fresh process."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from shared.contracts import EmbedResult
from shared.dialects import openai
from shared.engines.onnx import OnnxEngine
from shared.inference.model import load_model
from shared.inference.model_cache import ModelCache
from shared.models.store import open_store_url
from shared.wire.codec import pack
from tests.azurite import running_azurite
from tests.benchmarks.turns import Turns, spread, take_turns
from tests.server import ROOT, running_service

MODEL = "all-MiniLM-L6-v2"


def milliseconds(action: Callable[[], object]) -> Callable[[], float]:
    def measure() -> float:
        started = time.perf_counter()
        action()
        return (time.perf_counter() - started) * 1e3

    return measure


def formats() -> dict[str, float]:
    """Milliseconds to encode a 1,024 x 384 answer, and the blog's matrix as it measured it."""
    vectors = np.random.default_rng(0).standard_normal((1024, 384)).astype(np.float32)
    result = EmbedResult(vectors, (10,) * 1024, MODEL, "r")
    as_floats, as_base64 = (
        openai.EmbeddingsBody("x"),
        openai.EmbeddingsBody("x", encoding_format="base64"),
    )
    wide = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float64)
    turns = take_turns(
        {
            name: milliseconds(action)
            for name, action in (
                ("JSON answer", lambda: openai.format_result(result, as_floats)),
                ("base64 answer", lambda: openai.format_result(result, as_base64)),
                ("msgpack answer", lambda: pack({"data": vectors})),
                ("blog matrix float64 8.4 MB: msgpack", lambda: pack({"data": wide})),
                ("blog matrix float64 8.4 MB: pickle", lambda: pickle.dumps(wide.tolist())),
                ("blog matrix float64 8.4 MB: json of lists", lambda: json.dumps(wide.tolist())),
            )
        }
    )
    return {
        **{f"{name}, ms": turns.of(name).median for name in turns.measured},
        **turns.ratio("JSON answer", "base64 answer").figures("JSON / base64"),
        **turns.ratio(
            "blog matrix float64 8.4 MB: pickle", "blog matrix float64 8.4 MB: msgpack"
        ).figures("pickle / msgpack"),
    }


async def load(
    endpoint: str, texts: Sequence[str], clients: int, per_request: int, rounds: int
) -> float:
    """Texts per second at an endpoint of OpenAI's form (base64 answers, as its client asks for).

    Each text is asked for `rounds` times: of a time cut off anywhere, long and short ones would not
    have their shares.
    """
    count = len(texts) * rounds
    starts = iter(range(0, count, per_request))

    async def client(session: aiohttp.ClientSession) -> None:
        for start in starts:
            batch = [texts[at % len(texts)] for at in range(start, min(start + per_request, count))]
            body = {"model": MODEL, "input": batch, "encoding_format": "base64"}
            async with session.post(endpoint, json=body) as response:
                answer = await response.json()
                assert response.status == 200, answer
                assert len(base64.b64decode(answer["data"][0]["embedding"])) == 384 * 4

    async with aiohttp.ClientSession() as session:
        started = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return count / (time.perf_counter() - started)


def http(
    store: Path, texts: list[str], bare: Callable[[], float], peers: Mapping[str, str], rounds: int = 2
) -> Turns:
    """Texts/s of 8 clients with 64 texts a request against the real local service, `bare`, and others.

    peers: endpoints of OpenAI's form that have the model too, by name.
    """
    with running_service(f"file://{store}") as url:
        endpoints = {"HTTP": f"{url}/v1/embeddings", **peers}

        def measure(endpoint: str) -> Callable[[], float]:
            return lambda: asyncio.run(load(endpoint, texts, 8, 64, rounds))

        for endpoint in endpoints.values():
            asyncio.run(load(endpoint, texts, 8, 64, 1))
        over_http = {name: measure(endpoint) for name, endpoint in endpoints.items()}
        return take_turns({**over_http, "bare engine": bare})


def cache(store: Path, work: Path) -> dict[str, float]:
    """Hit, miss from a real Azurite, and how many downloads 50 callers at once make."""
    source = open_store_url(f"file://{store}", cache_dir=work / "a", cache_disk_bytes=10**9)
    folder, manifest = source.fetch(MODEL, source.current(MODEL, "cpu"))
    with running_azurite() as azurite, azurite.container() as container:
        remote = open_store_url(
            container.url,
            connection_string=azurite.connection_string,
            cache_dir=work / "b",
            cache_disk_bytes=10**9,
        )
        remote.publish(folder, manifest)
        downloads = 0

        def load(name: str, revision: str) -> Any:
            nonlocal downloads
            downloads += 1
            return load_model(*remote.fetch(name, revision), OnnxEngine)

        models = ModelCache(
            find_revision=lambda name: remote.current(name, "cpu"),
            load=load,
            max_models=4,
            max_bytes=10**9,
            refresh_s=3600,
        )

        async def lease() -> None:
            async with models.lease(MODEL):
                pass

        async def measure() -> dict[str, float]:
            started = time.perf_counter()
            await asyncio.gather(*(lease() for _ in range(50)))
            miss = time.perf_counter() - started
            started = time.perf_counter()
            for _ in range(1000):
                await lease()
            return {"miss from Azurite, s": miss, "hit, ms": time.perf_counter() - started}

        try:
            return asyncio.run(measure()) | {"downloads for 50 callers": float(downloads)}
        finally:
            models.close()


_AS_AN_APP_STARTS = "import gc; gc.disable()\n"  # function_app.py does

_TELL = """
import os, sys, time
# Of Python's own start too, whose wall clock the caller reads; and what ends a process is no start.
print(time.clock_gettime(time.CLOCK_MONOTONIC), time.process_time())
sys.stdout.flush()
os._exit(0)
"""

_FIRST_VECTOR = """
import asyncio, gc, sys
from functions import cpu
from functions.backend.app import create_app
from shared.contracts import EmbedRequest
from shared.settings import Settings
settings = Settings(role="cpu", model_store=sys.argv[1])
inference = cpu.create_inference(settings)
create_app(settings, inference)
gc.freeze()
gc.enable()
async def main(texts):
    await inference.run(EmbedRequest(sys.argv[2], texts))
asyncio.run(main(("hello",)))
"""

_WORK = """
from pathlib import Path
for _ in range(20):
    asyncio.run(main(tuple("a longer text " * n for n in range(1, 65))))
# VmHWM, because ru_maxrss starts with the peak of the process that forked this one.
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""

_LIBRARIES = (
    "asyncio, msgpack, msgspec, numpy, orjson, prometheus_client, starlette.applications, zstandard"
)
_STARTS = {
    "router": "import functions.router",
    "CPU app": "import functions.cpu",
    "Python alone": "",
    "numpy alone": "import functions, numpy",
    "router's libraries alone": f"import functions, {_LIBRARIES}",
    "CPU app's libraries alone": f"import functions, onnxruntime, tokenizers, {_LIBRARIES}",
}


def process(store: Path) -> dict[str, float]:
    """Imports and the way from exec to the first vector, and the CPU backend's peak memory after work.

    Processor time too, because a machine that does something else stretches the other. With bytecode,
    which an image holds, and a machine after the first start; and without that of our modules, as in a
    zip.
    """
    model = (f"file://{store}", MODEL)
    first = _AS_AN_APP_STARTS + _FIRST_VECTOR
    with tempfile.TemporaryDirectory() as folder:
        with_bytecode = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        _start(first, *model, environ=with_bytecode)
        firsts = [_start(first, *model, environ=with_bytecode) for _ in range(9)]
        starts = [
            {
                name: _start(_AS_AN_APP_STARTS + code, environ=with_bytecode)[1]
                for name, code in _STARTS.items()
            }
            for _ in range(16)
        ][1:]
        for room in ("functions", "shared"):
            shutil.rmtree(f"{folder}{ROOT}/{room}")
        as_zip = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        zipped = [_start(first, *model, environ=as_zip) for _ in range(9)]
        work = _python(_FIRST_VECTOR + _WORK, *model, environ=with_bytecode)
    return {
        **spread([wall for wall, _ in firsts]).figures("process start to first vector, s"),
        **spread([used for _, used in firsts]).figures("the same, s of processor time"),
        **spread([wall for wall, _ in zipped]).figures("the same from a zip, s"),
        **{
            f"{name}, import, ms of processor time": statistics.median(each[name] for each in starts)
            * 1e3
            for name in _STARTS
        },
        "peak memory, MiB": float(work),
    }


def _start(code: str, *more: str, environ: Mapping[str, str]) -> tuple[float, float]:
    """Seconds until Python has run that: of the wall clock, and of the processor."""
    started = time.clock_gettime(time.CLOCK_MONOTONIC)
    ended, used = _python(code + _TELL, *more, environ=environ).split()
    return float(ended) - started, float(used)


def _python(code: str, *more: str, environ: Mapping[str, str]) -> str:
    command = [sys.executable, "-c", code, *more]
    return subprocess.run(
        command, env={**os.environ, **environ}, check=True, capture_output=True, text=True
    ).stdout
