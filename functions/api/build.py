"""Builds the router's dispatcher, catalogue and batches from settings.

Does not know HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.cards import Device
from shared.errors import Misconfigured
from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from functions.api.batches import Batches
    from shared.backends.base import Backend
    from shared.backends.http import HttpBackend
    from shared.models.catalogue import Catalogue
    from shared.routing.dispatch import Dispatcher


def connect(settings: Settings, here: Backend | None = None) -> tuple[Dispatcher, Catalogue]:
    """The router's dispatcher and catalogue. Raises Misconfigured.

    here: the CPU backend of this process, needed if the settings give no cpu_backend_url.
    """
    remote = _remote_backends(settings)
    backends: dict[Device, Backend] = {**remote}
    if "cpu" not in remote:
        if here is None:
            raise Misconfigured("BLITZ_CPU_BACKEND_URL is empty, and this process has no models")
        backends["cpu"] = here
    return dispatch_to(
        settings,
        backends,
        concurrency=dict.fromkeys(remote, settings.backend_concurrency),
        wake_gpu=remote["gpu"].wake if "gpu" in remote else None,
    )


def dispatch_to(
    settings: Settings,
    backends: Mapping[Device, Backend],
    *,
    concurrency: Mapping[Device, int],
    wake_gpu: Callable[[], Awaitable[None]] | None,
) -> tuple[Dispatcher, Catalogue]:
    """A dispatcher over these backends, and the catalogue of both devices."""
    from shared.models.catalogue import Catalogue
    from shared.models.store import open_store
    from shared.routing.dispatch import Dispatcher
    from shared.routing.policy import policy_of

    catalogue = Catalogue(open_store(settings), ("cpu", "gpu"))
    dispatcher = Dispatcher(
        backends,
        catalogue,
        policy_of(settings),
        part_texts=settings.part_texts,
        concurrency=concurrency,
        max_queue_s=settings.max_queue_s,
        max_request_tokens=settings.max_request_tokens,
        patience_s=settings.request_timeout_s / 4,
        gpu_idle_s=settings.gpu_idle_s,
        wake_gpu=wake_gpu,
    )
    return dispatcher, catalogue


def _remote_backends(settings: Settings) -> dict[Device, HttpBackend]:
    """The backends that have an address. Raises Misconfigured."""
    from shared.backends.credential import authorization_of

    authorize = authorization_of(settings)
    urls: dict[Device, str] = {"cpu": settings.cpu_backend_url, "gpu": settings.gpu_backend_url}
    if not any(urls.values()):
        return {}
    # Imported here: the HTTP client is a third of a start, and one process alone needs none.
    from shared.backends.http import HttpBackend

    return {device: HttpBackend(url, authorize=authorize) for device, url in urls.items() if url}


def connect_batches(settings: Settings) -> Batches | None:
    """Batches over the bulk storage; None if the settings name none. Raises Misconfigured."""
    if not settings.storage and not settings.storage_connection_string:
        return None
    from functions.api import batches

    return batches.connect(settings)
