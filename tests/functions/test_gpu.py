"""The GPU app without a GPU: when it starts, what it starts with, and what it shows of the memory."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from functions import gpu
from functions.backend import app as backend_app
from model_build.fp16 import export_fp16
from model_build.source import inspect_source
from shared.contracts import EmbedRequest
from shared.errors import Misconfigured
from shared.models.manifest import File
from shared.models.store import open_store_url
from shared.observability import metrics
from shared.observability.metrics import Telemetry
from shared.settings import Settings
from tests.fakes.inference import FakeInference
from tests.tiny_torch import manifest_of_folder, save_sentence_model

pytestmark = pytest.mark.anyio

GIB = 2**30
MEMORY = {"used": 1 * GIB, "reserved": 2 * GIB, "free": 10 * GIB}


@pytest.fixture(autouse=True)
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Telemetry:
    """The process's metrics, of this test alone."""
    made = Telemetry(CollectorRegistry())
    monkeypatch.setattr(metrics, "PROCESS", made)
    return made


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with one tiny model for the GPU."""
    folder = save_sentence_model(tmp_path / "model", "bert", "mean")
    out = tmp_path / "out"
    out.mkdir()
    export_fp16(inspect_source(folder), out)
    (out / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    files = tuple(
        File(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(out.iterdir())
    )
    manifest = msgspec.structs.replace(manifest_of_folder(folder), files=files)
    url = f"file://{tmp_path / 'store'}"
    opened = open_store_url(url, cache_dir=tmp_path / "a", cache_disk_bytes=10**9)
    opened.publish(out, manifest)
    return url


def _no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def _cuda(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """torch says there is a GPU with MEMORY; what would be built on it is noted instead."""
    built: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: MEMORY["used"])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: MEMORY["reserved"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (MEMORY["free"], 16 * GIB))
    monkeypatch.setattr(gpu, "build_inference", lambda *arguments: built.append(arguments))
    return built


def test_without_cuda_it_refuses_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the setting that allows the CPU."""
    _no_cuda(monkeypatch)
    with pytest.raises(Misconfigured, match="BLITZ_ALLOW_CPU=1"):
        gpu.create_inference(Settings(role="gpu"))


async def test_on_the_cpu_it_serves_if_allowed(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A published FP16 model answers through store, cache, batcher and engine."""
    _no_cuda(monkeypatch)
    settings = Settings(role="gpu", model_store=store, cache_dir=tmp_path / "b", allow_cpu=True)
    inference = gpu.create_inference(settings)
    try:
        result = await inference.run(EmbedRequest("tiny", ("a b", "c")))
        assert result.vectors.shape == (2, 32)
        assert np.isfinite(result.vectors).all()
        assert result.token_counts == (4, 3)
    finally:
        await inference.close()


@pytest.mark.parametrize("compiled", [False, True])
def test_on_cuda_models_are_fp16_and_batches_as_large_as_memory_allows(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 GiB free, of which models may take 2: 8 GiB at 256 KiB a token."""
    built = _cuda(monkeypatch)
    gpu.create_inference(Settings(cache_memory_bytes=2 * GIB, torch_compile=compiled))
    ((_, device, open_engine, capacity),) = built
    assert device == "gpu"
    assert isinstance(open_engine, partial)
    assert open_engine.keywords == {"device": "cuda", "dtype": torch.float16, "compile": compiled}
    assert (capacity.threads, capacity.batch_texts, capacity.batch_tokens) == (1, 1024, 32_768)


def test_models_may_not_be_given_more_memory_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the cache would fill the GPU before it evicts."""
    _cuda(monkeypatch)
    with pytest.raises(Misconfigured, match="BLITZ_CACHE_MEMORY_BYTES"):
        gpu.create_inference(Settings(cache_memory_bytes=11 * GIB))


async def _get(app: Any, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gpu") as client:
        return await client.get(path)


async def test_gpu_memory_is_in_ready_and_metrics(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes used, reserved and free, as they are when asked."""
    _cuda(monkeypatch)
    gpu.create_inference(Settings())
    app = backend_app.create_app(Settings(), FakeInference(), telemetry)
    assert json.loads((await _get(app, "/ready")).content)["gpu_memory"] == MEMORY
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5)
    text = (await _get(app, "/metrics")).text
    assert 'blitz_gpu_memory_bytes{kind="used"} 5.0' in text
    assert 'blitz_gpu_memory_bytes{kind="free"} 1.073741824e+10' in text


async def test_without_a_gpu_nothing_is_said_of_its_memory(telemetry: Telemetry) -> None:
    """No zeros that look like a full GPU."""
    app = backend_app.create_app(Settings(), FakeInference(), telemetry)
    assert "gpu_memory" not in json.loads((await _get(app, "/ready")).content)
    assert "blitz_gpu_memory_bytes{" not in (await _get(app, "/metrics")).text


def test_the_function_app_serves_any_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """One anonymous HTTP function; the app behind it is create_app's."""
    monkeypatch.setattr(gpu, "create_inference", lambda settings: FakeInference())
    app = gpu.function_app(Settings(role="gpu"))
    functions = {function.get_function_name(): function for function in app.get_functions()}
    trigger = json.loads(functions["http_app_func"].get_function_json())["bindings"][0]
    assert trigger["authLevel"].lower() == "anonymous"
    assert trigger["route"] == "/{*route}"
