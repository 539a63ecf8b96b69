"""The ingress: the router's ASGI app in a deployment of its own, over handles of the backends.

Does not know Ray's HTTP server, which calls the app, nor how many replicas a backend has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.api.app import create_app
from functions.api.build import connect_batches, dispatch_to
from functions.api.known_keys import connect_keys
from functions.cluster.fleet_metrics import FleetMetrics, gather
from functions.cluster.handle import HandleBackend
from functions.http.startup import log_request_limits
from shared.cards import Device
from shared.context import request_id
from shared.models.catalogue import Catalogue
from shared.observability import logs, metrics
from shared.observability.start import start_export
from shared.routing.dispatch import Dispatcher
from shared.settings import Settings

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


@serve.ingress()
class Router:
    """The deployment's class; Ray asks it for the ASGI app.

    name: of its deployment. handles: of the backends. calls: concurrent ones of this router to each.
    """

    def __init__(
        self,
        settings: Settings,
        handles: Mapping[Device, DeploymentHandle[Any]],
        calls: Mapping[Device, int],
    ) -> None:
        logs.use(settings.log_format, settings.role)
        start_export(settings)
        self._settings = settings
        self._handles = dict(handles)
        self._dispatcher, self._catalogue = connect(settings, self._handles, calls)

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        settings = self._settings
        log_request_limits(settings)
        app = create_app(
            settings,
            self._dispatcher,
            self._catalogue,
            batches=connect_batches(settings),
            keys=connect_keys(settings),
        )
        return OneRequestId(FleetMetrics(app, self._metrics_of_all))

    async def render_metrics(self) -> tuple[str, bytes]:
        """This replica's name, and its process's metrics in Prometheus's text format."""
        return serve.get_replica_context().replica_tag, metrics.PROCESS.render()

    async def _metrics_of_all(self) -> bytes:
        context = serve.get_replica_context()
        own = serve.get_deployment_handle(context.deployment, context.app_name)
        asked = {context.deployment: own, **{h.deployment_name: h for h in self._handles.values()}}
        return await gather(asked)


def connect(
    settings: Settings, handles: Mapping[Device, DeploymentHandle[Any]], calls: Mapping[Device, int]
) -> tuple[Dispatcher, Catalogue]:
    """The router's dispatcher over the handles, and its catalogue."""
    backends = {device: HandleBackend(handle, device) for device, handle in handles.items()}
    wake_gpu = backends["gpu"].wake if "gpu" in backends else None
    return dispatch_to(settings, backends, concurrency=calls, wake_gpu=wake_gpu)


class OneRequestId:
    """ASGI middleware: Ray's HTTP server states the request's id in each response; ours would be a
    second header of the same value. The app sees the id that Ray gave, or that the caller sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                name = request_id.HEADER.encode()
                message["headers"] = [each for each in message["headers"] if each[0].lower() != name]
            await send(message)

        await self._app(scope, receive, send_without_id)
