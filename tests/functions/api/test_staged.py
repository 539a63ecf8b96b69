"""A rollout from end to end: the command, a store, a router, a CPU backend with real tiny models."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import anyio
import httpx
import msgspec
import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from functions.api.app import create_app
from functions.api.known_keys import connect_keys
from functions.backend.build import build_inference
from model_build import rollout
from shared.dialects.operations import OPERATIONS, Operation
from shared.engines.cpu import capacity
from shared.engines.onnx import OnnxEngine
from shared.models.catalogue import Catalogue
from shared.models.manifest import File, Manifest
from shared.models.store import ModelStore, open_store
from shared.observability.metrics import Telemetry
from shared.routing.dispatch import Dispatcher
from shared.routing.policy import policy_of
from shared.settings import Settings
from tests.apps import wire_router
from tests.azurite import Azurite, running_azurite
from tests.functions.api.bodies import valid_body
from tests.patience import PATIENCE_S
from tests.tiny import Tiny, nearly

pytestmark = pytest.mark.anyio

OLD, NEW = Tiny("old"), Tiny("new")
TEXTS = ["w1 w2", "w3"]
ANN, BOB = {"api-key": "a-key-of-ann"}, {"api-key": "a-key-of-bob"}


@dataclass(frozen=True)
class As:
    """A store that takes a tiny model as a revision of "m"; damaged: with a graph that is none."""

    store: ModelStore
    revision: str
    damaged: bool = False

    def publish(self, folder: Path, manifest: Manifest) -> None:
        if self.damaged:
            (folder / "model.onnx").write_bytes(b"no graph")
        files = tuple(
            File(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in folder.iterdir()
        )
        renamed = msgspec.structs.replace(manifest, name="m", revision=self.revision, files=files)
        self.store.publish(folder, renamed, serve=self.revision == "old")


@dataclass
class Service:
    """What a test asks: the router's HTTP, the rollout command, and the catalogue that it reads."""

    client: httpx.AsyncClient
    catalogue: Catalogue
    settings: Settings

    async def rollout(self, *arguments: str) -> None:
        """Done, and seen by the router."""
        environ = {
            "BLITZ_MODEL_STORE": self.settings.model_store,
            "BLITZ_STORAGE_CONNECTION_STRING": self.settings.storage_connection_string,
        }
        ran = CliRunner().invoke(rollout.app, arguments, env=environ)
        assert ran.exit_code == 0, ran.stderr
        await self.catalogue.cards()

    async def ask(self, who: dict[str, str], model: str = "m") -> httpx.Response:
        body = {"model": model, "input": TEXTS}
        return await self.client.post("/v1/embeddings", json=body, headers=who)

    async def revision(self, who: dict[str, str]) -> str:
        """The one that answered; its vectors are that one's."""
        answer = await self.ask(who)
        assert answer.status_code == 200, answer.text
        named = answer.headers["x-model-revision"]
        vectors = [each["embedding"] for each in answer.json()["data"]]
        assert nearly(vectors, (NEW if named == "new" else OLD).vectors(TEXTS))
        return named

    async def until(self, who: dict[str, str], revision: str) -> None:
        """The backend looks at the pointer every refresh_s."""
        with anyio.fail_after(PATIENCE_S):
            while await self.revision(who) != revision:  # noqa: ASYNC110 - nothing tells of it
                await anyio.sleep(0.02)


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    with running_azurite() as azurite:
        yield azurite


@pytest.fixture(params=["folder", "blob"])
def settings(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """ "old" is served; "new" and "bad", which does not load, are there."""
    monkeypatch.setattr("shared.models.catalogue.CARDS_S", 0.0)
    (tmp_path / "keys.json").write_bytes(_keys_document())
    settings = Settings(
        model_store=f"file://{tmp_path / 'models'}",
        cache_dir=tmp_path / "cache",
        api_keys=f"file://{tmp_path}/keys.json",
        refresh_s=0.05,
        threads=1,
    )
    if request.param == "folder":
        _publish(settings)
        yield settings
        return
    azurite: Azurite = request.getfixturevalue("azurite")
    with azurite.container() as container:
        remote = replace(
            settings,
            model_store=container.url,
            storage_connection_string=azurite.connection_string,
        )
        _publish(remote)
        yield remote


def _keys_document() -> bytes:
    callers = [
        {
            "name": name,
            "owner": hashlib.sha256(name.encode()).hexdigest()[:16],
            "keys": [{"sha256": hashlib.sha256(key["api-key"].encode()).hexdigest()}],
        }
        for name, key in (("ann", ANN), ("bob", BOB))
    ]
    return json.dumps({"callers": callers}).encode()


def _publish(settings: Settings) -> None:
    store = open_store(settings)
    for tiny, place in ((OLD, As(store, "old")), (NEW, As(store, "new")), (NEW, As(store, "bad", True))):
        tiny.publish(cast(ModelStore, place))


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Service]:
    """Router and CPU backend in this process, as functions.local has them."""
    metrics = Telemetry(CollectorRegistry())
    inference = build_inference(settings, "cpu", OnnxEngine, capacity())
    catalogue = Catalogue(open_store(settings), ("cpu", "gpu"))
    dispatcher = Dispatcher(
        {"cpu": inference},
        catalogue,
        policy_of(settings),
        part_texts=settings.part_texts,
        concurrency={},
        max_queue_s=settings.max_queue_s,
        max_request_tokens=settings.max_request_tokens,
        patience_s=25.0,
        gpu_idle_s=300.0,
        metrics=metrics,
    )
    app = create_app(settings, dispatcher, catalogue, metrics, keys=connect_keys(settings, metrics))
    transport = httpx.ASGITransport(app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield Service(client, catalogue, settings)
    finally:
        await dispatcher.close()


async def test_a_rollout_from_staging_to_going_back(settings: Settings) -> None:
    """A chosen caller changes once each way; the others when it is promoted, and nobody flaps."""
    async with serving(settings) as service:
        assert [await service.revision(who) for who in (ANN, BOB)] == ["old", "old"]
        await service.rollout("stage", "m", "new", "--key", "ann")
        assert [await service.revision(who) for who in (ANN, BOB, ANN)] == ["new", "old", "new"]
        told = (await service.client.get("/metrics", headers=BOB)).text
        for role, calls in (("staged", 2), ("current", 1)):
            labels = f'{{model="m",outcome="ok",role="{role}"}}'
            assert f"blitz_revision_requests{labels} {calls}.0" in told
        states = (await service.client.get("/ready", headers=BOB)).json()["models"]
        assert {(each["name"], each["state"]) for each in states} == {("m", "warm"), ("m@new", "warm")}
        await service.rollout("promote", "m", "cpu")
        assert await service.revision(ANN) == "new"
        await service.until(BOB, "new")
        assert [await service.revision(who) for who in (ANN, BOB)] == ["new", "new"]
        await service.rollout("use", "m", "old")
        await service.until(ANN, "old")
        assert [await service.revision(who) for who in (ANN, BOB)] == ["old", "old"]


async def test_one_that_does_not_load_harms_nobody(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Its callers get the current one, the log and a metric tell why, and it can be abandoned."""
    async with serving(settings) as service:
        await service.rollout("stage", "m", "bad", "--percent", "100")
        with caplog.at_level(logging.WARNING):
            assert [await service.revision(who) for who in (ANN, BOB, ANN)] == ["old"] * 3
        told = [each.message for each in caplog.records if "staged revision m@bad" in each.message]
        assert len(told) == 1
        metrics = (await service.client.get("/metrics", headers=BOB)).text
        labels = '{model="m",outcome="model_load_failed",role="staged"}'
        assert f"blitz_revision_requests{labels} 3.0" in metrics
        await service.rollout("abandon", "m", "cpu")
        assert await service.revision(ANN) == "old"


@pytest.mark.parametrize("model", ["m@new", "m@old", "new", "m/new"])
async def test_a_caller_cannot_ask_for_a_revision(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is written for a model: there is one of that name or none."""
    settings = Settings(
        model_store=f"file://{tmp_path / 'models'}", cache_dir=tmp_path / "cache", threads=1
    )
    _publish(settings)
    async with serving(settings) as service:
        answer = await service.ask({}, model)
    assert answer.status_code == 404
    assert "there are: m" in answer.json()["error"]["message"]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.summary)
async def test_every_answer_says_which_revision_it_is_of(operation: Operation) -> None:
    """In every dialect, also where nothing is staged."""
    transport = httpx.ASGITransport(wire_router())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        body = valid_body(operation)
        path = operation.paths[0].replace("{model}", body["model"])
        answer = await client.post(path, params={"model": body["model"]}, json=body)
    assert (answer.status_code, answer.headers["x-model-revision"]) == (200, "r")
