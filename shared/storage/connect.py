"""Which bulk storage the settings name: a folder, Azurite or an Azure account. Knows nothing else."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from shared.settings import Settings
from shared.storage.blobs import Storage

DEFAULT = "file://.blitz/bulk"
_AZURITE = "UseDevelopmentStorage=true"  # Azurite's published account, ports 10000 and 10001


def open_storage(settings: Settings) -> Storage:
    """The storage that the settings name. Raises Misconfigured; does not connect yet."""
    url, connection_string = settings.storage, settings.storage_connection_string
    if not url and not connection_string:
        url = DEFAULT
    # Each is imported when it is opened: a process that uses a folder does not pay for azure.
    if url.startswith("file://") and len(url) > len("file://"):
        from shared.storage.folder import open_folder

        return open_folder(Path(url.removeprefix("file://")))
    from shared.storage.azure import open_account

    return open_account("", _AZURITE) if url == "azurite" else open_account(url, connection_string)


def local_storage(settings: Settings) -> Settings:
    """With the bulk storage beside the model store's folder, where neither names another one."""
    store = settings.model_store
    if settings.storage or settings.storage_connection_string or not store.startswith("file://"):
        return settings
    return replace(settings, storage=f"file://{Path(store.removeprefix('file://')).parent / 'bulk'}")
