"""The CPU backend: INT8 and FP32 ONNX models in ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from functions.backend import create_app
from functions.inference import Inference, build_inference
from functions.observed import start_export
from shared.engines.onnx import OnnxEngine, capacity
from shared.settings import Settings

if TYPE_CHECKING:
    import azure.functions as func


def create_inference(settings: Settings) -> Inference:
    """This process's models. Raises Misconfigured."""
    return build_inference(settings, "cpu", OnnxEngine, capacity())


def function_app(settings: Settings) -> func.AsgiFunctionApp:
    """As an Azure Functions app, bulk work included; who may call it is the platform's business."""
    import azure.functions as func  # outside Functions this stays unloaded

    from functions.bulk_steps import build_bulk
    from functions.bulk_triggers import register
    from shared.bulk.storage import open_storage

    start_export(settings)
    inference = create_inference(settings)
    app = func.AsgiFunctionApp(
        app=create_app(settings, inference), http_auth_level=func.AuthLevel.ANONYMOUS
    )
    register(app, build_bulk(settings, open_storage(settings), inference), "cpu")
    return app
