"""The GPU backend: FP16 models in torch on CUDA.

torch is imported in create_inference, so that this module can be imported where torch is missing.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from functions.backend import app
from functions.backend.build import build_inference
from shared.errors import Misconfigured
from shared.inference.service import Inference
from shared.observability import metrics
from shared.settings import Settings

if TYPE_CHECKING:
    import azure.functions as func


def create_inference(settings: Settings) -> Inference:
    """This process's models. Raises Misconfigured, also without CUDA unless settings.allow_cpu."""
    import torch

    from shared.engines.torch import TorchEngine, capacity, gpu_memory

    if torch.cuda.is_available():
        device, dtype = "cuda", torch.float16
        metrics.PROCESS.watch_gpu_memory(gpu_memory)
        free_bytes = gpu_memory()["free"] - settings.cache_memory_bytes
        if free_bytes < 0:
            raise Misconfigured(
                "BLITZ_CACHE_MEMORY_BYTES is more than the GPU has free: leave room for activations"
            )
    elif settings.allow_cpu:
        device, dtype, free_bytes = "cpu", torch.float32, None
    else:
        raise Misconfigured(
            "the GPU app finds no CUDA device: run it on a GPU, "
            "or set BLITZ_ALLOW_CPU=1 to run its models slowly on the CPU"
        )
    open_engine = functools.partial(
        TorchEngine, device=device, dtype=dtype, compile=settings.torch_compile
    )
    return build_inference(settings, "gpu", open_engine, capacity(free_bytes))


def function_app(settings: Settings) -> func.AsgiFunctionApp:
    """The GPU backend as an Azure Functions app."""
    return app.function_app(settings, "gpu", create_inference)
