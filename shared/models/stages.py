"""Staged revisions: `NAME/staged` (JSON, device -> share), which requests another revision answers.

It lies beside `NAME/current` and counts only as long as that has not moved elsewhere, see Share. Does
not know requests, nor whether the revision is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec

from shared.cards import Device, Share
from shared.errors import InvalidArtefact
from shared.models.objects import ObjectStore
from shared.names import is_name

STAGED_FILE = "staged"


def decode_stages(data: bytes | None) -> dict[Device, Share]:
    """Of no document: none. Raises InvalidArtefact."""
    if data is None:
        return {}
    try:
        stages = msgspec.json.decode(data, type=dict[Device, Share])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArtefact(f"the document '{STAGED_FILE}' is not valid: {error}") from error
    if not all(is_name(share.revision) and is_name(share.beside) for share in stages.values()):
        raise InvalidArtefact(f"the document '{STAGED_FILE}' holds no valid revision")
    return stages


def encode_stages(stages: Mapping[Device, Share]) -> bytes:
    """The document, in the same bytes for the same shares."""
    return msgspec.json.encode(stages, order="sorted") + b"\n"


class Stages:
    """What is staged of each model. Names are models' that exist; raises StoreUnavailable."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def of(self, name: str) -> dict[Device, Share]:
        """By device, whether it counts or not. Raises InvalidArtefact."""
        return decode_stages(self._objects.read(_key(name)))

    def put(self, name: str, device: Device, share: Share) -> None:
        """Instead of what was staged for that device. Raises InvalidArtefact."""
        self._change(name, lambda stages: {**stages, device: share})

    def end(self, name: str, device: Device) -> Share | None:
        """Stage nothing for that device any more; what was. Raises InvalidArtefact."""
        ended = self.of(name).get(device)
        if ended is not None:
            self._change(name, lambda stages: {key: stages[key] for key in stages if key != device})
        return ended

    def settle(self, name: str, device: Device, before: str | None, current: str) -> None:
        """After the pointer was moved: what was staged is promoted by that, or is over.

        What is promoted stays: backends look at the pointer later than routers do. A document that is
        not valid counts for nobody, and is left alone.
        """
        with suppress(InvalidArtefact):
            share = self.of(name).get(device)
            if share is None:
                return
            if share.revision == current:
                self.put(name, device, msgspec.structs.replace(share, beside=current))
            elif before != current:
                self.end(name, device)

    def _change(self, name: str, change: Callable[[dict[Device, Share]], dict[Device, Share]]) -> None:
        self._objects.update(_key(name), lambda data: encode_stages(change(decode_stages(data))))


def _key(name: str) -> str:
    return f"{name}/{STAGED_FILE}"
