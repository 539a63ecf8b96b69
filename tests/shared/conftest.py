"""A real Azurite and a container in it, for the tests of what reads and writes blobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from azure.storage.blob import ContainerClient

from tests.azurite import Azurite, running_azurite


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    with running_azurite() as azurite:
        yield azurite


@pytest.fixture
def container(azurite: Azurite) -> Iterator[ContainerClient]:
    with azurite.container() as client:
        yield client
