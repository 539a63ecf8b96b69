"""The CPU backend: ONNX models in ONNX Runtime or OpenVINO, and static embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from functions.backend import app
from functions.backend.build import build_inference
from shared.engines.cpu import capacity, open_cpu_engine
from shared.inference.service import Inference
from shared.settings import Settings

if TYPE_CHECKING:
    import azure.functions as func


def create_inference(settings: Settings) -> Inference:
    """This process's models. Raises Misconfigured."""
    return build_inference(settings, "cpu", open_cpu_engine, capacity())


def function_app(settings: Settings) -> func.AsgiFunctionApp:
    """The CPU backend as an Azure Functions app."""
    return app.function_app(settings, "cpu", create_inference)
