"""What a model cache loads from: models that only count, and loads that a test holds."""

from __future__ import annotations

import threading
from typing import cast

from shared.errors import UnknownModel
from shared.inference.model import Model
from tests.patience import PATIENCE_S


class ShelvedModel:
    def __init__(self, name: str, revision: str, memory_bytes: int) -> None:
        self.name = name
        self.revision = revision
        self.memory_bytes = memory_bytes
        self.closed = threading.Event()

    def close(self) -> None:
        assert not self.closed.is_set(), "closed twice"
        self.closed.set()


class Shelf:
    """What the cache loads from: revisions to find, failures to raise, gates that hold a load."""

    def __init__(self) -> None:
        self.revisions: dict[str, str] = {}
        self.errors: dict[str, Exception] = {}
        self.gates: dict[str, threading.Event] = {}
        self.entered: dict[str, threading.Event] = {}
        self.loaded: list[ShelvedModel] = []
        self.finds: list[str] = []
        self.memory_bytes = 10

    def hold(self, name: str) -> threading.Event:
        """Make loads of `name` wait for the returned event."""
        self.gates[name] = threading.Event()
        self.entered[name] = threading.Event()
        return self.gates[name]

    def find_revision(self, name: str) -> str:
        self.finds.append(name)
        if name == "unknown":
            raise UnknownModel("there is no model unknown")
        return self.revisions.get(name, "r1")

    def load(self, name: str, revision: str) -> Model:
        if name in self.gates:
            self.entered[name].set()
            assert self.gates[name].wait(PATIENCE_S)
        if name in self.errors:
            raise self.errors[name]
        model = ShelvedModel(name, revision, self.memory_bytes)
        self.loaded.append(model)
        return cast(Model, model)

    def names(self) -> list[str]:
        return [model.name for model in self.loaded]

    def one(self, name: str, revision: str = "r1") -> ShelvedModel:
        (model,) = (m for m in self.loaded if (m.name, m.revision) == (name, revision))
        return model


class Pinned(Shelf):
    """As a store's: NAME@REVISION is found as it is, and loads are of plain names."""

    def find_revision(self, name: str) -> str:
        plain, _, revision = name.partition("@")
        return revision or super().find_revision(plain)

    def load(self, name: str, revision: str) -> Model:
        assert "@" not in name
        return super().load(name, revision)
