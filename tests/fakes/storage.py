"""A container of a real storage that notes what passes through it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from shared.storage.blobs import Blobs, Metadata


class Recording:
    """A container that notes the sizes of the blocks that it is given."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    def write_stream(self, key: str, chunks: Iterable[bytes], metadata: Metadata | None = None) -> None:
        def noted() -> Iterator[bytes]:
            for chunk in chunks:
                self.sizes.append(len(chunk))
                yield chunk

        self._blobs.write_stream(key, noted(), metadata)
