"""A staged revision behind the dispatcher, over a fake backend: what answers, fails and is counted."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from shared import errors
from shared.cards import Device, ModelCard, ModelState, Share, Staged
from shared.context import deadline, sender
from shared.contracts import AnyRequest, EmbedRequest, EmbedResult
from shared.errors import BlitzError
from shared.names import pinned_name, split_pinned
from shared.observability.metrics import Telemetry
from shared.routing.dispatch import Dispatcher
from shared.routing.policy import fixed
from shared.wire import messages
from tests.fakes.backend import ByOperation
from tests.fakes.catalogue import FakeCatalogue

pytestmark = pytest.mark.anyio

ANN, BOB = sender.Sender("ann", "a" * 16), sender.Sender("bob", "b" * 16)
ONE = EmbedRequest("m", ("a",))
MANY = EmbedRequest("m", tuple("abcdefghij"))
NEW = pinned_name("m", "new")


class OfTwoRevisions(ByOperation):
    """Answers with the revision that it is asked for, over the wire.

    errors, hangs: of names that it is asked for. lies: the revision that it says instead.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.errors: dict[str, BlitzError] = {}
        self.hangs: set[str] = set()
        self.lies = ""

    async def run(self, request: AnyRequest) -> Any:
        packed = messages.pack_request(request)
        return await super().run(messages.unpack_request(packed, type(request), max_bytes=100_000))

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        self.asked.append(request.model)
        if request.model in self.hangs:
            await asyncio.Event().wait()
        if error := self.errors.get(request.model):
            raise error
        name, revision = split_pinned(request.model)
        rows = np.ones((len(request.inputs), 2), np.float32)
        return EmbedResult(rows, (3,) * len(rows), name, self.lies or revision or "old")

    def check(self) -> None:
        """There is always room."""

    async def states(self) -> list[ModelState]:
        return []

    async def close(self) -> None:
        pass


class Setup:
    """The dispatcher of a router with a remote CPU backend that splits requests into parts of 2."""

    def __init__(self, **share: Any) -> None:
        self.backend, self.metrics = OfTwoRevisions(), Telemetry(CollectorRegistry())
        device: Device = "cpu"
        own = ModelCard("m", "old", "cpu-int8", "bert", "mean", 2, 16, device=device, closeness=0.99)
        fields = {"revision": "new", "beside": "old", "callers": ("ann",)}
        staged = Staged(replace(own, revision="new", closeness=0.995), Share(**(fields | share)))
        self.catalogue = FakeCatalogue([replace(own, staged=staged)])
        self.dispatcher = Dispatcher(
            {device: self.backend},
            self.catalogue,
            fixed(10),
            part_texts=2,
            concurrency={device: 4},
            max_queue_s=30.0,
            max_request_tokens=10_000,
            patience_s=25.0,
            gpu_idle_s=300.0,
            metrics=self.metrics,
        )

    async def ask(self, who: sender.Sender, request: EmbedRequest = ONE) -> str:
        """The revision that answers."""
        with sender.known(who):
            return (await self.dispatcher.run(request)).revision

    def series(self, name: str) -> dict[tuple[str, ...], float]:
        """By its labels but the model's, and the backend's; of a histogram, how many there were."""
        found = {}
        for each in self.metrics.samples():
            if each.name == f"blitz_revision_{name}":
                labels = dict(each.labels)
                key = tuple(labels[label] for label in ("role", "outcome") if label in labels)
                found[key] = float(each.count) if each.kind == "histogram" else each.value
        return found


async def test_a_chosen_caller_gets_the_staged_revision() -> None:
    """All others the current one; both are counted, with what they took and how good they are."""
    setup = Setup()
    assert [await setup.ask(who) for who in (ANN, BOB, sender.NOBODY)] == ["new", "old", "old"]
    assert setup.backend.asked == [NEW, "m", "m"]
    assert setup.series("requests") == {("staged", "ok"): 1, ("current", "ok"): 2}
    assert setup.series("duration") == {("staged",): 1, ("current",): 2}
    assert setup.series("tokens") == {("staged",): 3, ("current",): 6}
    assert setup.series("quality") == {("staged",): 0.995, ("current",): 0.99}


async def test_all_parts_of_a_request_are_of_one_revision() -> None:
    """Each names it, so that no backend can take another."""
    setup = Setup()
    assert await setup.ask(ANN, MANY) == "new"
    assert setup.backend.asked == [NEW] * 5


async def test_a_pinned_name_is_left_alone() -> None:
    """A bulk job's revision stays what it was when the job was made."""
    setup = Setup(percent=100)
    assert await setup.ask(ANN, EmbedRequest("m@older", ("a",))) == "older"


@pytest.mark.parametrize(
    "error",
    [
        errors.ModelLoadFailed("it did not load"),
        errors.UnknownModel("it is not there"),
        errors.NotFinite("it gives NaN"),
        errors.InvalidArtefact("a file is damaged"),
        errors.BackendFailed("it broke off"),
        BlitzError("internal error"),
    ],
    ids=lambda error: error.code,
)
async def test_what_fails_leaves_the_request_to_the_current_one(
    error: BlitzError, caplog: pytest.LogCaptureFixture
) -> None:
    """With a metric for each and one line in the log, until it has answered again."""
    setup = Setup()
    setup.backend.errors[NEW] = error
    with caplog.at_level(logging.WARNING):
        assert [await setup.ask(ANN) for _ in range(3)] == ["old"] * 3
        assert [each.message for each in caplog.records] == [
            f"the staged revision m@new did not answer on the CPU backend: {error.message}"
        ]
        assert setup.series("requests") == {("staged", error.code): 3.0, ("current", "ok"): 3.0}
        assert 'blitz_backend_fallbacks{backend="cpu"}' not in setup.metrics.render().decode()
        del setup.backend.errors[NEW]
        assert await setup.ask(ANN) == "new"
        setup.backend.errors[NEW] = error
        assert await setup.ask(ANN) == "old"
    assert len(caplog.records) == 2


async def test_one_that_does_not_end_leaves_half_of_the_time() -> None:
    """A load that hangs costs a chosen caller time, and not the answer."""
    setup = Setup()
    setup.backend.hangs.add(NEW)
    async with deadline.within(0.4):
        assert await setup.ask(ANN) == "old"
    assert setup.series("requests") == {("staged", "deadline_exceeded"): 1.0, ("current", "ok"): 1.0}


async def test_a_callers_error_is_no_reason_to_ask_the_other() -> None:
    """It would say the same."""
    setup = Setup()
    setup.backend.errors[NEW] = errors.InvalidInput("no such prompt")
    with pytest.raises(errors.InvalidInput):
        await setup.ask(ANN)
    assert setup.backend.asked == [NEW]


async def test_a_backend_that_answers_with_another_revision_is_not_believed() -> None:
    """Its vectors may not be the ones that were asked for."""
    setup = Setup(compatible=False)
    setup.backend.lies = "older"
    with pytest.raises(errors.BackendFailed, match="another revision"):
        await setup.ask(ANN)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errors.ModelLoadFailed("it did not load"), "it did not load"),
        (errors.UnknownModel("it is not there"), "the revision m@new is not there"),
    ],
    ids=lambda each: getattr(each, "code", "says"),
)
async def test_an_incompatible_one_has_no_other_to_fall_back_to(error: BlitzError, told: str) -> None:
    """Vectors of another space would be worse than none: the caller is told to retry."""
    setup = Setup(compatible=False)
    setup.backend.errors[NEW] = error
    with pytest.raises(errors.ModelLoadFailed, match=told):
        await setup.ask(ANN)
    assert setup.backend.asked == [NEW]
    assert await setup.ask(BOB) == "old"


async def test_what_is_over_is_compared_no_more() -> None:
    """The quality of a model with one revision is no series; its requests are not counted by role."""
    setup = Setup()
    await setup.ask(ANN)
    setup.catalogue.listed = [replace(setup.catalogue.listed[0], staged=None)]
    assert await setup.ask(ANN) == "old"
    assert setup.series("quality") == {}
    assert setup.series("requests") == {("staged", "ok"): 1.0}
