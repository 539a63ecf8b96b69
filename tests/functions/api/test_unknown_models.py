"""What a router's operator is told of names in the settings that mean no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from functions.api.unknown_models import warn_of_unknown_models, warn_of_unknown_models_soon
from shared.models.catalogue import Catalogue, card_of
from shared.models.store import open_store
from shared.settings import Settings
from tests.patience import PATIENCE_S
from tests.tiny import Tiny, manifest_of, publish_all

CARDS = [card_of(manifest_of("mini"))]
REMOTE = "http://127.0.0.1:1"
NOT_THERE: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"default_model": "mini"}, []),
    ({"default_model": "nope"}, ["BLITZ_DEFAULT_MODEL is nope, which is not in the store: requests"]),
    ({"default_model": "org/m", "model_aliases": ("org/m=mini",)}, []),
    (
        {"default_model": "org/m", "model_aliases": ("org/m=nope",)},
        ["BLITZ_DEFAULT_MODEL is org/m", "BLITZ_MODEL_ALIASES has org/m=nope, and nope is not in the"],
    ),
    ({"default_model": "org/m"}, ["BLITZ_DEFAULT_MODEL is org/m, which is not in the store"]),
    (
        {"model_aliases": ("a=mini", "b=one", "c=two")},
        [
            "BLITZ_MODEL_ALIASES has b=one",
            "BLITZ_MODEL_ALIASES has c=two, and two is not in the store: req",
        ],
    ),
    ({"warm_models": ("nope",)}, []),  # the model cache of this process tells of it
    (
        {"warm_models": ("mini", "nope"), "cpu_backend_url": REMOTE},
        ["BLITZ_WARM_MODELS has nope, which is not in the store: /ready is 503 until it is"],
    ),
    (
        {"warm_models": ("m",), "model_aliases": ("m=mini",), "cpu_backend_url": REMOTE},
        [],
    ),
]


@pytest.mark.parametrize(("given", "warned"), NOT_THERE)
def test_names_that_mean_no_model_are_told(
    given: dict[str, Any], warned: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A warning for each setting and name, with the names there are; nothing is refused."""
    warn_of_unknown_models(Settings(**given), CARDS)
    messages = [record.message for record in caplog.records]
    assert [message[: len(start)] for message, start in zip(messages, warned, strict=True)] == warned
    assert all(message.endswith("; there are: mini") for message in messages)


def test_where_a_start_waits_for_no_store_they_are_told_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in Azure. A store that does not answer says so itself."""
    store = f"file://{tmp_path / 'models'}"
    publish_all([Tiny("a")], store)
    settings = Settings(model_store=store, default_model="nope")
    for each in (settings, replace(settings, model_store=f"file://{tmp_path / 'gone'}")):
        thread = warn_of_unknown_models_soon(each, Catalogue(open_store(each), ("cpu",)))
        assert thread is not None
        thread.join(PATIENCE_S)
    first, second = (record.message for record in caplog.records)
    assert first.startswith("BLITZ_DEFAULT_MODEL is nope, which is not in the store")
    assert second.startswith("the models could not be listed: ")
    assert (
        warn_of_unknown_models_soon(
            replace(settings, default_model=""), Catalogue(open_store(settings), ())
        )
        is None
    )
