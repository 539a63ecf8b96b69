"""A pytest plugin: the router's own tests, unchanged, with every call of a backend going through Ray.

    $ python -m pytest -p tests.cluster.on_ray tests/functions/api/test_router.py

The router is in the test's process, as without the plugin. Its backend is a real deployment handle; the
replica behind it is real too, but for its models: it asks the test's own fake, over HTTP, so that the
fake is told what to answer, and tells what it was asked, as ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

import tests.apps
from functions.api.app import create_app
from functions.api.openapi import DescribedApp
from shared.models.catalogue import Catalogue
from shared.observability.metrics import Telemetry
from shared.settings import Settings
from tests.fakes.backend import FakeBackend
from tests.server import ROOT

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["PYTHONPATH"] = str(ROOT)  # of Ray's processes

_running = ExitStack()
_calls: list[int] = []


class _TestsFake:
    """The fake of the test that is running, for the HTTP server that the replica asks."""

    fake = FakeBackend()

    def __getattr__(self, name: str) -> Any:
        return getattr(_TestsFake.fake, name)


class _OnRay:
    """What the router of a test has in its fake's place: the fake, but its requests go through Ray."""

    def __init__(self, fake: FakeBackend, backend: Any) -> None:
        self._fake = fake
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fake, name)

    async def run(self, request: Any) -> Any:
        _TestsFake.fake = self._fake
        _calls.append(1)
        return await self._backend.run(request)


def _start() -> Any:
    """Ray, the replica, and the server of the test's fake; returns the backend over the handle."""
    from ray import serve

    from functions.cluster.handle import HandleBackend
    from functions.cluster.replica import Replica
    from shared.backends.http import HttpBackend
    from tests.cluster.running import running_cluster
    from tests.sockets import serving

    class AskingBack(Replica):
        @staticmethod
        def create_inference(settings: Settings, device: Any) -> Any:
            return HttpBackend(settings.cpu_backend_url)

    _running.enter_context(running_cluster())
    server = tests.apps.backend_app(cast(Any, _TestsFake()), max_body_bytes=200_000_000)
    url = f"http://127.0.0.1:{_running.enter_context(serving(server))}"
    settings = replace(Settings(cpu_backend_url=url), max_body_bytes=200_000_000)
    handle = serve.run(serve.deployment(AskingBack).bind(settings, "cpu", 1), name="asking")
    return HandleBackend(handle, "cpu")


NOT_OVER_A_WIRE = {
    # A context variable of the router's process, for its dispatcher, which the test does without.
    "test_the_routing_header_is_handed_on",
    # Its caller leaves before a call has reached a replica, and so the fake: see test_faults.py.
    "test_work_for_a_caller_that_left_is_cancelled",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without what looks at a backend in the router's own process."""
    left_out = [item for item in items if getattr(item, "originalname", "") in NOT_OVER_A_WIRE]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def every_call_goes_through_ray() -> Iterator[None]:
    """Over the whole run; which fails if none did."""
    backend = _start()

    def router_app(fake: FakeBackend, **settings: Any) -> DescribedApp:
        on_ray = cast(Any, _OnRay(fake, backend))
        return create_app(
            Settings(**settings), on_ray, cast(Catalogue, fake), Telemetry(CollectorRegistry())
        )

    for module in _that_have_it():
        module.router_app = router_app
    with _running:
        yield
    assert _calls


def _that_have_it() -> list[Any]:
    import sys

    return [
        module
        for name, module in sys.modules.items()
        if name.startswith("tests.") and hasattr(module, "router_app")
    ]
