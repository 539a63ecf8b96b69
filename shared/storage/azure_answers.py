"""Calls of Azure storage: a container or queue that is missing is made, a refusal becomes None.

Does not know blobs or messages.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from azure.core.exceptions import HttpResponseError, ResourceExistsError

from shared.storage.blobs import STORE
from shared.storage.translate import azure_errors

T = TypeVar("T")


def made_if(missing: str, make: Callable[[], object], call: Callable[[], T]) -> T:
    """The answer of `call`, which is repeated after `make` if it says that its place is missing."""
    with azure_errors(STORE):
        try:
            return call()
        except HttpResponseError as error:
            if _code(error) != missing:
                raise
        with suppress(ResourceExistsError):
            make()
        return call()


def unless(codes: tuple[str, ...], call: Callable[[], T]) -> T | None:
    """None if the service refuses with one of these error codes."""
    try:
        return call()
    except HttpResponseError as error:
        if _code(error) not in codes:
            raise
        return None


def _code(error: HttpResponseError) -> str:
    return getattr(error, "error_code", None) or ""
