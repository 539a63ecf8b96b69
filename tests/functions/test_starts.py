"""What each role leaves for later when it starts: modules counted, not seconds.

A module that comes back here is a slower cold start; what it costs is in docs/measurements/path.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.server import ROOT

HEAVY = {
    "aiohttp",
    "azure",
    "difflib",
    "fastapi",
    "opencensus",
    "pandas",
    "pyarrow",
    "pydantic",
    "safetensors",
    "torch",
    "uvicorn",
}
MODELS = {"onnxruntime", "tokenizers"}
# The command line's library looks for similar words.
LOCAL = HEAVY - {"difflib", "uvicorn"}
# Functions' own library is what an app is made of there.
IN_AZURE = HEAVY - {"azure"} | {"azure.identity", "azure.storage", "azure.core"}
# A dataclass is made of source text, in half a millisecond; a msgspec.Struct in a fiftieth of that.
MADE_SLOWLY = """
ours = [module for name, module in sys.modules.items() if name.startswith(("functions.", "shared."))]
slowly = [
    f"{each.__module__}.{each.__name__}"
    for module in ours
    for each in vars(module).values()
    if isinstance(each, type) and hasattr(each, "__dataclass_fields__")
    and each.__module__ == module.__name__
]
"""
# Their repr leaves out the text, as a Struct's cannot.
WITHOUT_TEXT = {f"shared.bulk.rows.{name}" for name in ("ArrowRow", "Row")}
APP = "import functions.local.__main__ as local; local._app(Settings.from_env(os.environ), None)"


@pytest.mark.parametrize(
    ("start", "environ", "left_out"),
    [
        ("import functions.router", {}, HEAVY | MODELS),
        ("import functions.cpu", {}, HEAVY | {"shared.dialects"}),
        ("import functions.local.__main__", {}, LOCAL | MODELS),
        (APP, {}, LOCAL),
        ("import function_app", {"BLITZ_ROLE": "router"}, IN_AZURE),
        ("import function_app", {"BLITZ_ROLE": "cpu"}, IN_AZURE),
        (
            "import function_app",
            {"BLITZ_ROLE": "router", "BLITZ_CPU_BACKEND_URL": "http://127.0.0.1:1"},
            IN_AZURE - {"aiohttp"} | MODELS,
        ),
    ],
    ids=[
        "router",
        "cpu",
        "local",
        "local app",
        "router in Azure",
        "cpu in Azure",
        "router alone in Azure",
    ],
)
def test_a_start_imports_no_more_than_it_needs(
    start: str, environ: dict[str, str], left_out: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With a bulk storage beside the models, and no telemetry."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "models").mkdir()
    code = (
        "import json, os, sys; from shared.settings import Settings\n"
        f"{start}\n{MADE_SLOWLY}"
        "print(json.dumps([slowly, os.environ['OPENBLAS_NUM_THREADS'], *sys.modules]))\n"
        "sys.stdout.flush(); os._exit(0)"
    )
    stores = {"BLITZ_MODEL_STORE": f"file://{folder}/models", "BLITZ_STORAGE": f"file://{folder}/bulk"}
    unset = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**unset, **stores, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    slowly, threads, *loaded = json.loads(ran.stdout.splitlines()[-1])
    assert set(loaded) >= {"numpy", "shared.settings"}
    assert set(loaded) & left_out == set()
    assert set(slowly) <= WITHOUT_TEXT
    # numpy reads it when it is imported, and that is after the package that sets it.
    assert threads == "1"
    assert loaded.index("functions") < loaded.index("numpy")
