"""Links by which a caller reads one blob from Azure for a short while, without an identity of its own.

They are signed with a key of the service's identity (user delegation), never with the account's. Does
not know who may read what.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from azure.storage.blob import BlobSasPermissions, BlobServiceClient, generate_blob_sas

from shared.storage.blobs import STORE, check_key
from shared.storage.translate import azure_errors

VALID = timedelta(minutes=15)
"""Within which a download must begin, and every retry and range of it."""

_KEY_VALID = timedelta(days=1)
_CLOCKS_DIFFER = timedelta(minutes=5)


class Links:
    """Links into a container of `service`, which must have a credential. Thread-safe.

    The identity needs Storage Blob Delegator on the account, and on the container the right that a link
    gives: to read.
    """

    def __init__(
        self,
        service: BlobServiceClient,
        container: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._service = service
        self._container = container
        self._clock = clock
        self._lock = threading.Lock()
        self._key: Any = None
        self._key_ends = datetime.min.replace(tzinfo=UTC)

    def to(self, key: str) -> str:
        """A URL that reads this one blob for VALID. Raises StoreUnavailable if nothing can be signed."""
        blob = self._service.get_blob_client(self._container, check_key(key))
        now = self._clock()
        signature = generate_blob_sas(
            str(blob.account_name),
            blob.container_name,
            blob.blob_name,
            user_delegation_key=self._signing_key(now),
            permission=BlobSasPermissions(read=True),
            expiry=now + VALID,
            protocol="https",
            # Whatever somebody stored, no browser takes it for a page of the account.
            content_type="application/octet-stream",
            content_disposition="attachment",
        )
        return f"{blob.url}?{signature}"

    def _signing_key(self, now: datetime) -> Any:
        """The same for a day, because each is a request to Azure."""
        with self._lock:
            if now + VALID > self._key_ends:
                ends = now + _KEY_VALID
                with azure_errors(STORE):
                    self._key = self._service.get_user_delegation_key(now - _CLOCKS_DIFFER, ends)
                self._key_ends = ends
            return self._key
