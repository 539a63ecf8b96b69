"""The router's parts from settings: what it calls, what it knows of models, where batches are.

Does not know HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.contracts import Device
from shared.settings import Settings

if TYPE_CHECKING:
    from functions.api.batches import Batches
    from shared.backends.base import Backend
    from shared.models.catalogue import Catalogue
    from shared.routing.dispatch import Dispatcher


def connect(settings: Settings, here: Backend | None = None) -> tuple[Dispatcher, Catalogue]:
    """What the router calls and what it knows of models, from settings. Raises Misconfigured.

    here: the CPU backend of this process, if somebody else uses it too.
    """
    from shared.backends.credential import authorization_of
    from shared.backends.http import HttpBackend
    from shared.models.catalogue import Catalogue
    from shared.models.store import open_store
    from shared.routing.dispatch import Dispatcher
    from shared.routing.policy import policy_of

    catalogue = Catalogue(open_store(settings), ("cpu", "gpu"))
    timeout_s, authorize = settings.request_timeout_s, authorization_of(settings)
    urls: dict[Device, str] = {"cpu": settings.cpu_backend_url, "gpu": settings.gpu_backend_url}
    remote = {
        device: HttpBackend(url, timeout_s, authorize=authorize) for device, url in urls.items() if url
    }
    backends: dict[Device, Backend] = {**remote}
    if "cpu" not in remote:
        assert here is not None, "no setting says where the CPU backend is, and it is not here"
        backends["cpu"] = here
    dispatcher = Dispatcher(
        backends,
        catalogue,
        policy_of(settings),
        part_texts=settings.part_texts,
        concurrency=dict.fromkeys(remote, settings.backend_concurrency),
        max_queue_s=settings.max_queue_s,
        max_request_tokens=settings.max_request_tokens,
        timeout_s=timeout_s,
        gpu_idle_s=settings.gpu_idle_s,
        wake_gpu=remote["gpu"].wake if "gpu" in remote else None,
    )
    return dispatcher, catalogue


def connect_batches(settings: Settings) -> Batches | None:
    """None where no bulk storage is named. Raises Misconfigured."""
    if not settings.storage and not settings.storage_connection_string:
        return None
    from functions.api import batches

    return batches.connect(settings)
