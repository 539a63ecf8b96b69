"""Schemathesis over /openapi.json: what the document promises is what the router does; never a 5xx."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgpack
import pytest
import schemathesis
from hypothesis import given, reject, settings
from schemathesis.generation.hypothesis.builder import (
    HypothesisTestConfig,
    HypothesisTestMode,
    create_test,
)
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from shared.wire import codec
from tests.apps import wire_router
from tests.server import running_service

# A JSON schema cannot say all that is refused (which models there are, how many tokens they read), and
# for it 5.0 is an integer. Whatever is refused must be refused with a status that is documented.
EXCLUDED: Any = [positive_data_acceptance]
UNKNOWN = "x-schemathesis-unknown-property"
"""In a query it does no harm; Schemathesis says so too, unless a number stands beside it, as a text."""


@schemathesis.serializer(codec.CONTENT_TYPE)
def to_msgpack(context: Any, value: Any) -> bytes:
    """What msgpack can hold: integers of more than 64 bits are not sent."""
    try:
        packed: bytes = msgpack.packb(value)
    except OverflowError:
        reject()
    return packed


DOCUMENT = schemathesis.openapi.from_asgi("/openapi.json", wire_router())
OPERATIONS = {(each := cast(Any, found).ok()).label: each for found in DOCUMENT.get_all_operations()}


def keeps_to_it(case: Any) -> None:
    more = [negative_data_rejection] if UNKNOWN in (case.query or {}) else []
    case.call_and_validate(excluded_checks=[*EXCLUDED, *more])


# Schemathesis' own parametrize makes all cases when tests are collected, in every process of the run.
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_router_keeps_to_its_document(operation: str) -> None:
    """Good and bad requests to every operation, over a fake backend."""
    made = HypothesisTestConfig(
        project=DOCUMENT.config,
        modes=list(HypothesisTestMode),
        settings=settings(max_examples=10, derandomize=True, database=None),
    )
    create_test(operation=OPERATIONS[operation], test_func=keeps_to_it, config=made)()


def test_the_real_service_keeps_to_its_document(minilm_store: Path) -> None:
    """A few good requests to every operation, over HTTP to the service with a real model."""
    with running_service(f"file://{minilm_store}") as url:
        document = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for operation in (cast(Any, each).ok() for each in document.get_all_operations()):

            @settings(max_examples=10, derandomize=True, database=None)
            @given(case=operation.as_strategy())
            def check(case: Any) -> None:
                case.call_and_validate(excluded_checks=EXCLUDED)

            check()


def test_every_route_is_in_the_document() -> None:
    """Nothing is served that Schemathesis does not see, but for the documents themselves."""
    app: Any = wire_router()
    served = {(method, route.path_format) for route in app.routes for method in route.methods - {"HEAD"}}
    described = {
        (method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods
    }
    documents = {("GET", path) for path in ("/openapi.json", "/docs", "/docs/{name}")}
    assert served - documents == described
