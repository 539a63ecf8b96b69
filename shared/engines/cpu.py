"""Which engine runs a model on the CPU: static embeddings in numpy, everything else in ONNX Runtime.

Does not know models, or how the engines work.
"""

from __future__ import annotations

from pathlib import Path

from shared.engines.base import Engine
from shared.engines.onnx import OnnxEngine
from shared.engines.static import StaticEngine
from shared.models.manifest import Manifest


def open_cpu_engine(folder: Path, manifest: Manifest) -> Engine:
    """See `OpenEngine`."""
    kind = StaticEngine if manifest.target == "cpu-static" else OnnxEngine
    return kind(folder, manifest)
