"""A model store without files that a catalogue lists."""

from __future__ import annotations

import threading
from contextvars import ContextVar

from shared.cards import Device, Share
from shared.errors import InvalidArtefact
from shared.models.manifest import Manifest
from tests.patience import PATIENCE_S
from tests.tiny import manifest_of

REQUEST: ContextVar[str | None] = ContextVar("request", default=None)


class NothingStaged:
    """Of no model; tests of stages use a real store."""

    def of(self, name: str) -> dict[Device, Share]:
        return {}


class FakeStore:
    """Holds a for both devices, b for the CPU, c for the GPU, and one whose manifest is broken.

    It answers while `open` is set; `asked` is told of each listing that begins. seen: REQUEST in each.
    """

    def __init__(self) -> None:
        self.seen: list[str | None] = []
        self.error: Exception | None = None
        self.held = ["a", "b", "broken", "c"]
        self.stages = NothingStaged()
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Semaphore(0)

    @property
    def listings(self) -> int:
        return len(self.seen)

    def names(self) -> list[str]:
        self.seen.append(REQUEST.get())
        self.asked.release()
        assert self.open.wait(PATIENCE_S)
        if self.error:
            raise self.error
        return self.held

    def revisions(self, name: str) -> dict[Device, str]:
        both: dict[Device, str] = {"cpu": "r1", "gpu": "g1"}
        return {"b": {"cpu": "r1"}, "c": {"gpu": "g1"}}.get(name, both)  # type: ignore[return-value]

    def manifest(self, name: str, revision: str) -> Manifest:
        if name == "broken":
            raise InvalidArtefact("the manifest is not valid")
        target = "gpu-fp16" if revision == "g1" else "cpu-int8"
        return manifest_of(name, revision=revision, target=target)
