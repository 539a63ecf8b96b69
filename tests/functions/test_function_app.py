from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server import ROOT

# One process per role, as in Azure: function_app.py builds its app at import.
_INVOKE = """
import asyncio, json, sys
from types import SimpleNamespace
import azure.functions as func
from function_app import app
[function] = app.get_functions()
method, path, body = sys.argv[1:]
request = func.HttpRequest(method, f"http://localhost{path}", body=body.encode(),
                           headers={"Content-Type": "application/json"})
response = asyncio.run(function.get_user_function()(request, SimpleNamespace(thread_local_storage=None)))
bindings = [binding.get_dict_repr() for binding in function.get_bindings()]
print(json.dumps([response.status_code, response.get_body().decode(), bindings], default=str))
"""


def _invoke(store: Path, role: str, method: str, path: str, body: str = "") -> tuple[int, str, str]:
    environ = {"BLITZ_ROLE": role, "BLITZ_MODEL_STORE": f"file://{store}", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _INVOKE, method, path, body]
    output = subprocess.run(
        command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True, timeout=60
    ).stdout
    status, answer, bindings = json.loads(output.splitlines()[-1])
    return status, answer, json.dumps(bindings)


def test_the_router_embeds_behind_the_functions_adapter(minilm_store: Path) -> None:
    """The app that BLITZ_ROLE picks answers an HTTP trigger with a real vector."""
    body = json.dumps({"model": "all-MiniLM-L6-v2", "input": "hello"})
    status, answer, bindings = _invoke(minilm_store, "router", "POST", "/v1/embeddings", body)
    assert status == 200
    assert len(json.loads(answer)["data"][0]["embedding"]) == 384
    assert "/{*route}" in bindings


@pytest.mark.parametrize("role", ["router", "cpu"])
def test_each_role_lives_without_a_store(tmp_path: Path, role: str) -> None:
    """Liveness does not wait for models: an instance must be up within 30 seconds."""
    status, _, _ = _invoke(tmp_path, role, "GET", "/health")
    assert status == 200
