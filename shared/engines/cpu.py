"""Which engine runs a model on the CPU, and how much at once, by its target: numpy, OpenVINO or ONNX
Runtime.

Does not know models, or how the engines work.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from shared.engines.base import Capacity, Engine, OpenEngine
from shared.engines.cpus import usable_cpus
from shared.engines.onnx import OnnxEngine
from shared.engines.onnx_tokens import SparseEngine, TokenVectorsEngine
from shared.errors import Misconfigured
from shared.models.manifest import OPENVINO_TARGETS, Manifest


def capacity() -> Capacity:
    """A thread a core.

    ONNX Runtime's micro-batches stay in an L2 cache of 2 MB (4 x 384 float32 a token); OpenVINO is
    faster with larger ones.
    """
    return Capacity(
        threads=usable_cpus(),
        batch_tokens=256,
        batch_texts=128,
        target_tokens=dict.fromkeys(OPENVINO_TARGETS, 512),
    )


def open_cpu_engine(folder: Path, manifest: Manifest) -> Engine:
    """See `OpenEngine`. Raises Misconfigured if the model's engine is not installed."""
    if manifest.target in OPENVINO_TARGETS:
        return _openvino(manifest)(folder, manifest)
    if manifest.target == "cpu-static":
        from shared.engines.static import StaticEngine  # its reader of safetensors is for few models

        return StaticEngine(folder, manifest)
    match manifest.task:
        case "sparse":
            return SparseEngine(folder, manifest)
        case "multi-vector":
            return TokenVectorsEngine(folder, manifest)
    return OnnxEngine(folder, manifest)


def _openvino(manifest: Manifest) -> OpenEngine:
    """OpenVINO's engine, whose package is imported with the first model that needs it."""
    try:
        engine: OpenEngine = import_module("shared.engines.openvino").OpenVinoEngine
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise
        raise Misconfigured(
            f"{manifest.name} is built for {manifest.target}, which OpenVINO runs, and that is not "
            "installed here: install infra/cpu/requirements-openvino.txt, in Azure with "
            "CPU_OPENVINO=true; or build the model for cpu-int8"
        ) from error
    return engine
