"""Envelopes to the ingestion endpoint, or into files while that does not take them.

Does not know what an envelope is about.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from azure.core.credentials import AccessToken, TokenCredential
from azure.core.exceptions import ClientAuthenticationError
from opencensus.ext.azure.common import parse_connection_string
from opencensus.ext.azure.common.storage import LocalFileStorage
from opencensus.ext.azure.common.transport import TransportMixin, TransportStatusCode

from shared.errors import Misconfigured

TIMEOUT_S = 10.0
RETRY_S = 60.0
"""After a failed post everything goes to files for this long, so that nothing waits for the endpoint."""
FILES_BYTES = 20_000_000
"""Flex Consumption has 0.8 GB of temporary storage, most of it for models."""

_DEFAULT_ENDPOINT = "https://dc.services.visualstudio.com"


class Transport(TransportMixin):  # type: ignore[misc]
    """opencensus' transport, with its files. For one thread, except `keep`.

    credential: its tokens authorise each post; None: the instrumentation key in the envelopes does.
    folder: for envelopes that could not be sent.
    """

    def __init__(self, endpoint: str, credential: TokenCredential | None, folder: Path) -> None:
        self.options = SimpleNamespace(
            endpoint=endpoint,
            credential=_Retried(credential) if credential else None,
            proxies="{}",
            timeout=TIMEOUT_S,
        )
        self.storage = LocalFileStorage(str(folder), max_size=FILES_BYTES, source="azure-export")
        self._consecutive_redirects = 0
        self._retry_at = 0.0

    def send(self, envelopes: list[Any]) -> None:
        """Post them; write them to a file if the endpoint does not take them or failed lately."""
        if not envelopes:
            return
        if time.monotonic() < self._retry_at:
            self.keep(envelopes)
        elif self._transmit(envelopes) is TransportStatusCode.RETRY:
            self._retry_at = time.monotonic() + RETRY_S
            self.keep(envelopes)

    def keep(self, envelopes: Sequence[Any]) -> None:
        """Write them to a file, unless the folder is full, which opencensus logs."""
        if envelopes:
            self.storage.put(envelopes)

    def resend(self) -> None:
        """Post the files that wait, until a post fails. Other processes may do so at the same time."""
        for blob in self.storage.gets():
            if time.monotonic() < self._retry_at:
                return
            if blob.lease(TIMEOUT_S + 5) and (envelopes := blob.get()):
                if self._transmit(envelopes) is TransportStatusCode.RETRY:
                    self._retry_at = time.monotonic() + RETRY_S
                else:
                    blob.delete()

    def close(self) -> None:
        self.storage.close()

    def _check_stats_collection(self) -> bool:
        """True, or opencensus (1.1.15) drops the payload of every failed connection.

        It then also counts in memory; only its exporters would start a thread that sends those counts.
        """
        return True


class _Retried:
    """A credential whose failures are reasons to try again: for most, opencensus drops the payload."""

    def __init__(self, credential: TokenCredential) -> None:
        self._credential = credential

    def get_token(self, *scopes: str) -> AccessToken:
        try:
            return self._credential.get_token(*scopes)
        except Exception as error:
            raise ClientAuthenticationError(f"no token: {type(error).__name__}") from error


def key_and_endpoint(connection_string: str) -> tuple[str, str]:
    """Instrumentation key and endpoint. Raises Misconfigured, without quoting what was given."""
    try:
        parts = parse_connection_string(connection_string.strip(" ;"))
        key = str(uuid.UUID(parts.get("instrumentationkey")))
    except (ValueError, AttributeError, TypeError):
        raise Misconfigured(
            "APPLICATIONINSIGHTS_CONNECTION_STRING must be like "
            "InstrumentationKey=GUID;IngestionEndpoint=https://..."
        ) from None
    return key, (parts.get("ingestionendpoint") or _DEFAULT_ENDPOINT).rstrip("/")
