"""The router's parts from settings: what it calls, what it knows of models, where batches are.

Does not know HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.manifest import Device
from shared.settings import Settings

if TYPE_CHECKING:
    from functions.batches import Batches
    from shared.backend_client import Backend
    from shared.catalogue import Catalogue
    from shared.dispatch import Dispatcher


def connect(settings: Settings, here: Backend | None = None) -> tuple[Dispatcher, Catalogue]:
    """What the router calls and what it knows of models, from settings. Raises Misconfigured.

    here: the CPU backend of this process, if somebody else uses it too.
    """
    from shared.backend_auth import authorization_of
    from shared.backend_client import HttpBackend
    from shared.catalogue import Catalogue
    from shared.dispatch import Dispatcher
    from shared.model_store import open_store
    from shared.routing import policy_of

    catalogue = Catalogue(open_store(settings), ("cpu", "gpu"))
    timeout_s, authorize = settings.request_timeout_s, authorization_of(settings)
    urls: dict[Device, str] = {"cpu": settings.cpu_backend_url, "gpu": settings.gpu_backend_url}
    remote = {
        device: HttpBackend(url, timeout_s, authorize=authorize) for device, url in urls.items() if url
    }
    backends: dict[Device, Backend] = {**remote}
    if "cpu" not in remote:
        if here is None:
            from functions.cpu import create_inference

            here = create_inference(settings)
        backends["cpu"] = here
    dispatcher = Dispatcher(
        backends,
        catalogue,
        policy_of(settings),
        chunk_texts=settings.chunk_texts,
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
    from functions import batches

    return batches.connect(settings)
