"""infinity, a server of others, with the INT8 file that it takes for CPUs, over HTTP like ours.

It pins other versions of what we use, and so has an environment of its own (.venv/infinity). Its engine
finds an ONNX file of a local folder only at the folder's root, and only from there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from tests.benchmarks.peers import Setting, dynamic_file
from tests.patience import PATIENCE_S
from tests.server import free_port, wait_until_answered

COMMAND = Path(__file__).parents[2] / ".venv" / "infinity" / "bin" / "infinity_emb"
PATH = "/embeddings"


def prepare(setting: Setting) -> Path:
    """A folder as it wants it, over `quantize_dynamic`'s file, whose output has the name it expects."""
    folder = setting.work / "infinity"
    shutil.copytree(setting.source, folder)
    graph = onnx.load(dynamic_file(setting))
    (output,) = graph.graph.output
    for node in graph.graph.node:
        node.output[:] = ["last_hidden_state" if name == output.name else name for name in node.output]
    output.name = "last_hidden_state"
    onnx.save(graph, folder / "model_quantized.onnx")
    return folder


@contextmanager
def running(folder: Path, name: str) -> Iterator[str]:
    """Its server over `folder`, ready, as the model `name`; yields its base URL."""
    port = free_port()
    command = [str(COMMAND), "v2", "--model-id", ".", "--served-model-name", name, "--engine", "optimum"]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_answered(f"{url}/health", process, 2 * PATIENCE_S, anything=False)
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
