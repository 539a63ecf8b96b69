"""Errors of disks and of Azure become ours; how long an Azure client tries.

Does not know what is stored. azure is imported where its errors can come.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shared.errors import BlitzError, StoreUnavailable, Unavailable

# A dead store is an error after about 15 s: three tries of 4 s each to connect or to read.
_RETRIES, _CONNECT_S, _READ_S, _BACKOFF_S = 2, 4, 4, 1


def client_options(linear_retry: Callable[..., object]) -> dict[str, Any]:
    """How long any Azure client tries. linear_retry: the class LinearRetry of the client's package."""
    return {
        "retry_policy": linear_retry(backoff=_BACKOFF_S, retry_total=_RETRIES, random_jitter_range=0),
        "connection_timeout": _CONNECT_S,
        "read_timeout": _READ_S,
    }


@contextmanager
def disk_errors(store: str = "the model store") -> Iterator[None]:
    """Turn an OSError into a BlitzError that names no path. store: whose files they are, in words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(f"there is no disk space left for {store}'s files") from error
        raise StoreUnavailable(f"{store}'s files cannot be read or written") from error


@contextmanager
def azure_errors(store: str = "the model store") -> Iterator[None]:
    """The one place where azure's exceptions become ours. store: which storage it is, in words."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

    try:
        yield
    except BlitzError:
        raise
    except ClientAuthenticationError as error:
        if error.status_code is None:  # DefaultAzureCredential, of itself: nobody was asked
            raise StoreUnavailable(
                f"there are no credentials here for {store}: sign in with az login, assign a managed "
                "identity, or set BLITZ_STORAGE_CONNECTION_STRING"
            ) from error
        raise StoreUnavailable(f"{store} refused this service's credentials") from error
    except HttpResponseError as error:
        if getattr(error, "error_code", None) == "ContainerNotFound":
            raise StoreUnavailable(f"{store}'s container does not exist") from error
        if error.status_code in (401, 403):
            raise StoreUnavailable(f"{store} refused this service's credentials") from error
        raise StoreUnavailable(f"{store} answered with an error") from error
    except AzureError as error:
        raise StoreUnavailable(f"{store} did not answer") from error
