"""The router: public HTTP in every dialect, over the backends that settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from functions.api.app import create_app
from functions.api.build import connect, connect_batches
from functions.api.known_keys import connect_keys
from functions.api.unknown_models import warn_of_unknown_models_soon
from functions.http.startup import log_request_limits
from shared.observability.start import start_export
from shared.settings import Settings

if TYPE_CHECKING:
    import azure.functions as func


def function_app(settings: Settings) -> func.AsgiFunctionApp:
    """The router as an Azure Functions app, over the backends that the settings name."""
    # Imported here: each is slow to import, and some deployments do not need it.
    import azure.functions as func

    start_export(settings)
    log_request_limits(settings)
    here = None
    if not settings.cpu_backend_url:
        from functions.cpu import create_inference

        here = create_inference(settings)
    dispatcher, catalogue = connect(settings, here)
    warn_of_unknown_models_soon(settings, catalogue)
    batches, keys = connect_batches(settings), connect_keys(settings)
    asgi = create_app(settings, dispatcher, catalogue, batches=batches, keys=keys)
    app = func.AsgiFunctionApp(app=asgi, http_auth_level=func.AuthLevel.ANONYMOUS)
    if settings.gpu_backend_url and settings.gpu_ahead_s:
        from shared.routing import warmup

        warm_up = warmup.connect(settings, dispatcher.wake_gpu)
        dispatcher.watch_gpu_work(warm_up.count)
        warmup.register(app, warm_up)
    return app
