"""A source folder as it is served: built without being measured, and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from model_build.describe import MODEL_FILE, WEIGHTS_FILE, describe
from model_build.export import export_onnx, optimize_offline
from model_build.fp16 import export_fp16
from model_build.source import inspect_source
from model_build.static import export_static
from model_build.text_side import with_text_side
from shared.contracts import EmbedRequest, FloatMatrix, InputType
from shared.engines.cpu import open_cpu_engine
from shared.engines.torch import TorchEngine
from shared.inference.model import Model, load_model
from shared.inference.steps import completed
from shared.models.manifest import Source, Target
from shared.vectors import finish


def served(folder: Path, target: Target, out: Path) -> Model:
    """`folder` built into the new folder `out` and loaded; a GPU's model in FP32 on the CPU."""
    out.mkdir()
    source = inspect_source(with_text_side(folder, out / "text"))
    if target == "cpu-static":
        export_static(source.folder, source.architecture, source.tokenizer_json, out / WEIGHTS_FILE)
    elif target == "gpu-fp16":
        export_fp16(source, out)
    else:
        assert target == "cpu-fp32"
        export_onnx(source, out / "traced.onnx")
        optimize_offline(out / "traced.onnx", out / MODEL_FILE)
    manifest = describe(out, source, Source("there", "1"), "m", target)
    on_gpu = partial(TorchEngine, device="cpu", dtype=torch.float32)
    return load_model(out, manifest, on_gpu if target == "gpu-fp16" else open_cpu_engine)


def embed(model: Model, texts: Sequence[str], input_type: InputType | None = None) -> FloatMatrix:
    """As the original would answer: normalised only if it normalises."""
    request = EmbedRequest("m", tuple(texts), input_type=input_type)
    return finish(model.run(completed(model.tokenize(request))), None, model.manifest.normalize)
