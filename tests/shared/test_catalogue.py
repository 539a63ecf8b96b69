"""What is listed of a store, and how often it is asked."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from shared.catalogue import Catalogue
from shared.errors import InvalidArtefact, StoreUnavailable
from shared.manifest import SCHEMA_VERSION, Device, Manifest, Source
from shared.model_store import ModelStore

pytestmark = pytest.mark.anyio


class FakeStore:
    """Holds a for both devices, b for the CPU, c for the GPU, and one whose manifest is broken."""

    def __init__(self) -> None:
        self.listings = 0
        self.error: Exception | None = None

    def names(self) -> list[str]:
        self.listings += 1
        if self.error:
            raise self.error
        return ["a", "b", "broken", "c"]

    def revisions(self, name: str) -> dict[Device, str]:
        both: dict[Device, str] = {"cpu": "r1", "gpu": "g1"}
        return {"b": {"cpu": "r1"}, "c": {"gpu": "g1"}}.get(name, both)  # type: ignore[return-value]

    def manifest(self, name: str, revision: str) -> Manifest:
        if name == "broken":
            raise InvalidArtefact("the manifest is not valid")
        return Manifest(
            schema_version=SCHEMA_VERSION,
            name=name,
            revision=revision,
            task="embedding",
            target="gpu-fp16" if revision == "g1" else "cpu-int8",
            architecture="bert",
            source=Source("there", "1"),
            files=(),
            model_file="model.onnx",
            tokenizer_file="tokenizer.json",
            pad_token_id=0,
            max_tokens=16,
            dimensions=2,
            pooling="mean",
            prompts={"query": "q: ", "document": "d: "},
        )


def catalogue(store: FakeStore, *devices: Device) -> Catalogue:
    return Catalogue(cast(ModelStore, store), devices)


async def test_there_is_a_card_for_each_model_and_device() -> None:
    """Only for devices asked for; one broken model does not hide the others."""
    both = await catalogue(FakeStore(), "cpu", "gpu").cards()
    assert [(c.name, c.device) for c in both] == [("a", "cpu"), ("a", "gpu"), ("b", "cpu"), ("c", "gpu")]
    cpu = await catalogue(FakeStore(), "cpu").cards()
    assert [(c.name, c.revision, c.target) for c in cpu] == [
        ("a", "r1", "cpu-int8"),
        ("b", "r1", "cpu-int8"),
    ]
    assert cpu[0].prompts == ("document", "query")


async def test_callers_at_the_same_time_share_one_listing() -> None:
    """And those shortly after, too."""
    store = FakeStore()
    listed = catalogue(store, "cpu")
    first, second = await asyncio.gather(listed.cards(), listed.cards())
    assert first == second == await listed.cards()
    assert store.listings == 1


async def test_a_store_that_does_not_answer_is_asked_again() -> None:
    """A failure is not kept."""
    store = FakeStore()
    store.error = StoreUnavailable("the model store does not answer")
    listed = catalogue(store, "cpu")
    with pytest.raises(StoreUnavailable):
        await listed.cards()
    store.error = None
    assert await listed.cards()
