"""Bulk storage in an Azure account, or in Azurite: its two containers and its queues.

It does not know jobs. Containers and queues are made when they turn out to be missing.
"""

from __future__ import annotations

import re
from typing import Any

from azure.storage.blob import BlobServiceClient
from azure.storage.blob import LinearRetry as BlobRetry
from azure.storage.queue import LinearRetry as QueueRetry
from azure.storage.queue import QueueServiceClient

from shared.errors import Misconfigured
from shared.storage.azure_blobs import BLOCK_BYTES, AzureBlobs
from shared.storage.azure_links import Links
from shared.storage.azure_queue import AzureQueue
from shared.storage.blobs import OUT, SOURCE, Storage
from shared.storage.translate import client_options

# The SDK would ask for the newest version it knows, which an Azurite of the same age refuses.
_API_VERSION = "2023-11-03"
_ACCOUNT = re.compile(r"https://[^./]+\.blob\.[^/]+")


def open_account(url: str, connection_string: str) -> Storage:
    """url: https://ACCOUNT.blob.core.windows.net; empty for the account of the connection string.

    connection_string: empty for DefaultAzureCredential. Raises Misconfigured; does not connect yet.
    """
    blob_options: dict[str, Any] = {
        **client_options(BlobRetry),
        "api_version": _API_VERSION,
        "max_single_get_size": BLOCK_BYTES,
        "max_chunk_get_size": BLOCK_BYTES,
        "max_single_put_size": BLOCK_BYTES,
    }
    queue_options: dict[str, Any] = {**client_options(QueueRetry), "api_version": _API_VERSION}
    url = url.rstrip("/")
    link = None
    if connection_string:
        if "BlobEndpoint=" in connection_string and "QueueEndpoint=" not in connection_string:
            raise Misconfigured("the storage connection string names no QueueEndpoint")
        try:
            blobs = BlobServiceClient.from_connection_string(connection_string, **blob_options)
            queues = QueueServiceClient.from_connection_string(connection_string, **queue_options)
        except ValueError as error:
            raise Misconfigured("the storage connection string is not valid") from error
        if url and blobs.url.rstrip("/") != url:
            raise Misconfigured("the storage connection string is of another account than BLITZ_STORAGE")
    else:
        if not _ACCOUNT.fullmatch(url):
            raise Misconfigured(
                "BLITZ_STORAGE, or --to, must be file://FOLDER, azurite or https://ACCOUNT.blob.core.windows.net"
            )
        from azure.identity import DefaultAzureCredential

        credential = DefaultAzureCredential()
        blobs = BlobServiceClient(url, credential, **blob_options)
        queues = QueueServiceClient(url.replace(".blob.", ".queue.", 1), credential, **queue_options)
        link = Links(blobs, OUT).to
    return Storage(
        AzureBlobs(blobs, SOURCE),
        AzureBlobs(blobs, OUT),
        lambda name: AzureQueue(queues.get_queue_client(name)),
        link,
    )
