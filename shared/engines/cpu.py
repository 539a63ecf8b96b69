"""Which engine runs a model on the CPU: static embeddings in numpy, everything else in ONNX Runtime.

Does not know models, or how the engines work.
"""

from __future__ import annotations

from pathlib import Path

from shared.engines.base import Engine
from shared.engines.onnx import OnnxEngine
from shared.engines.onnx_tokens import SparseEngine, TokenVectorsEngine
from shared.engines.static import StaticEngine
from shared.models.manifest import Manifest


def open_cpu_engine(folder: Path, manifest: Manifest) -> Engine:
    """See `OpenEngine`."""
    if manifest.target == "cpu-static":
        return StaticEngine(folder, manifest)
    match manifest.task:
        case "sparse":
            return SparseEngine(folder, manifest)
        case "multi-vector":
            return TokenVectorsEngine(folder, manifest)
    return OnnxEngine(folder, manifest)
