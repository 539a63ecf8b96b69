"""Which models are loaded, under which names they are served, and which of them has to go.

One entry for each model and revision, however many names it has: NAME, and NAME@REVISION of bulk jobs
that pin it. It does not load or close anything, has no lock and no clock: shared.inference.model_cache
has.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from shared.inference.model import Model

Key: TypeAlias = tuple[str, str]
"""A model's own name, and the revision."""


class Entry(msgspec.Struct, eq=False):
    """A loaded model. retired: not served any more; to be closed when its last lease ends.

    used: a counter, the greatest for the model that was used last. checked_at: when its revision was
    last found to be the current one; checking: somebody is looking.
    """

    model: Model
    key: Key
    memory_bytes: int
    checked_at: float
    leases: int = 0
    used: int = 0
    checking: bool = False
    retired: bool = False
    names: set[str] = msgspec.field(default_factory=set)

    @property
    def revision(self) -> str:
        """What the model was published as."""
        return self.key[1]


class LoadedModels:
    """At most `max_models` and `max_bytes`, but for leased ones, and always the one used last.

    Methods that change what is loaded return the entries that the caller has to close.
    """

    def __init__(self, max_models: int, max_bytes: int) -> None:
        self._max_models = max_models
        self._max_bytes = max_bytes
        self._entries: dict[Key, Entry] = {}
        self._names: dict[str, Entry] = {}
        self._retired: set[Entry] = set()
        self._uses = itertools.count(1)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def memory_bytes(self) -> int:
        """Of all loaded models; retired ones count as long as they are leased."""
        return sum(entry.memory_bytes for entry in (*self._entries.values(), *self._retired))

    def served(self) -> Iterator[tuple[str, Entry]]:
        """Every name, with what it stands for."""
        return iter(self._names.items())

    def named(self, name: str) -> Entry | None:
        """What `name` stands for; None if it is not loaded."""
        return self._names.get(name)

    def find(self, key: Key) -> Entry | None:
        """The entry of a model and revision; None if it is not loaded."""
        return self._entries.get(key)

    def use(self, name: str) -> Entry | None:
        """What `name` stands for, with one more lease."""
        entry = self._names.get(name)
        if entry is not None:
            entry.leases += 1
            entry.used = next(self._uses)
        return entry

    def serve(self, name: str, entry: Entry) -> list[Entry]:
        """From now on `name` is that one. What it was is retired, if it has no other name."""
        old = self._names.get(name)
        self._names[name] = entry
        entry.names.add(name)
        self._entries[entry.key] = entry
        if old is None:
            entry.used = next(self._uses)
        elif old is not entry:
            entry.used = max(entry.used, old.used)  # that there is a new revision is no use of it
            old.names.discard(name)
            if not old.names:
                return self._retire(old)
        return []

    def release(self, entry: Entry) -> list[Entry]:
        """Take a lease back."""
        entry.leases -= 1
        if entry.retired and not entry.leases:
            self._retired.discard(entry)
            return [entry]
        return []

    def shrink(self) -> list[Entry]:
        """Drop idle models, least recently used first, until limits hold."""
        dropped: list[Entry] = []
        held = self.memory_bytes
        for entry in sorted(self._entries.values(), key=lambda entry: entry.used)[:-1]:
            if len(self._entries) <= self._max_models and held <= self._max_bytes:
                break
            if not entry.leases:
                held -= entry.memory_bytes
                dropped += self._retire(entry)
        return dropped

    def clear(self) -> list[Entry]:
        """Serve nothing any more."""
        return [closing for entry in list(self._entries.values()) for closing in self._retire(entry)]

    def _retire(self, entry: Entry) -> list[Entry]:
        del self._entries[entry.key]
        for name in entry.names:
            del self._names[name]
        entry.names.clear()
        entry.retired = True
        if entry.leases:
            self._retired.add(entry)
            return []
        return [entry]
