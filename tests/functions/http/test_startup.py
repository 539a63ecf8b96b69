"""What people are told when a process starts: the limits that hold."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from functions.http.startup import log_engine_limits, log_request_limits
from shared.observability import logs
from shared.settings import Settings
from tests.patience import PATIENCE_S
from tests.server import ROOT
from tests.tiny import Tiny, publish_all

ENGINE: dict[str, Any] = {
    "threads": 3,
    "tokenizer_threads": 2,
    "models": 4,
    "models_bytes": 2_000_000_000,
    "batches_bytes": 256_000_000,
}


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    start = logging.getLogger(logs.START)
    handlers, level, propagate = start.handlers[:], start.level, start.propagate
    start.setLevel(logging.INFO)
    start.propagate = False
    written = io.StringIO()
    start.handlers[:] = [logging.StreamHandler(written)]
    yield written
    start.handlers[:], start.propagate = handlers, propagate
    start.setLevel(level)


def test_threads_and_limits_are_one_line_each(stream: io.StringIO) -> None:
    """In units that people read."""
    log_engine_limits("cpu", **ENGINE)
    log_request_limits(Settings(), 2048)
    log_request_limits(Settings(role="gpu", max_pending_bytes=1_500_000_000))
    assert stream.getvalue().splitlines() == [
        "cpu:    3 engine threads, 2 tokenizer threads; memory: at most 4 models in 2.0 GB, "
        "256 MB to run them",
        "router: at most 2,048 connections, 512 concurrent requests with 128 MB of bodies and "
        "responses; a body has at most 20 MB",
        "gpu:    at most 512 concurrent requests with 1.5 GB of bodies and responses; a body has at "
        "most 20 MB",
    ]


ROLES = ["router", "cpu", *(["gpu"] if importlib.util.find_spec("torch") else [])]


@pytest.mark.parametrize("role", ROLES)
def test_each_role_tells_its_limits_as_json_too(role: str, tmp_path: Path) -> None:
    """With numbers as fields; a router's models here are the CPU's."""
    store = f"file://{tmp_path / 'models'}"
    publish_all([Tiny("a")], store, "gpu-fp16" if role == "gpu" else "cpu-fp32")
    environ = {
        "BLITZ_ROLE": role,
        "BLITZ_ALLOW_CPU": "1",
        "BLITZ_LOG_FORMAT": "json",
        "BLITZ_THREADS": "3",
        "BLITZ_CACHE_MEMORY_BYTES": "1000000000",
        "BLITZ_BATCH_MEMORY_BYTES": "300000000",
        "BLITZ_MAX_REQUESTS": "7",
        "BLITZ_MAX_CONNECTIONS": "9",
        "BLITZ_WARM_MODELS": "nope",
    }
    command = [sys.executable, "-m", "functions.local", "--port", "0", "--model-store", store]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environ}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    told: dict[str, dict[str, Any]] = {}
    with process.stderr:
        try:
            for line in process.stderr:
                record = json.loads(line)
                for key in ("engine_threads", "max_connections", "nope"):
                    if key in record.get("fields", {}) or key in record["msg"]:
                        told[key] = record
                if len(told) == 3:
                    break
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
    engine, requests = told["engine_threads"], told["max_connections"]
    assert (engine["role"], engine["logger"]) == (role, "functions.start")
    assert engine["fields"]["engine_threads"] == 3
    assert engine["fields"]["cache_memory_bytes"] == 1_000_000_000
    assert engine["fields"]["batch_memory_bytes"] == 300_000_000
    assert engine["fields"]["tokenizer_threads"] >= 1
    assert engine["msg"].startswith("gpu:" if role == "gpu" else "cpu:")
    assert (requests["fields"]["max_requests"], requests["fields"]["max_connections"]) == (7, 9)
    assert requests["msg"].startswith(f"{role}:")
    assert "the model nope did not load: there is no model 'nope'" in told["nope"]["msg"]
