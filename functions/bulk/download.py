"""Downloads what a bulk job has made, and checks it against the manifest.

Does not know the commands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from functions.bulk.progress import Sending
from shared.bulk.jobs import JobManifest
from shared.errors import InvalidInput, SourceChanged
from shared.storage.blobs import OUT, Storage

_BLOCK_BYTES = 4 << 20


def download(storage: Storage, manifest: JobManifest, folder: Path) -> Iterator[Path]:
    """Yields each file once it lies in `folder`, complete and with the right hash.

    Raises InvalidInput if the folder cannot be written, SourceChanged if an output is gone or replaced.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for output in manifest.outputs:
            stat = storage.out.stat(output.key)
            if stat is None:
                raise SourceChanged(f"{OUT}/{output.key} has been deleted")
            target = folder / output.key.rpartition("/")[2]
            # A name of fixed length: that of the file may already have the longest there is.
            partial = target.with_name(
                f".{hashlib.sha256(output.key.encode()).hexdigest()[:16]}.partial"
            )
            digest = hashlib.sha256()
            with partial.open("wb") as sink, Sending(target.name, stat.size) as receiving:
                ranges = (
                    storage.out.read_range(stat.key, start, _BLOCK_BYTES, etag=stat.etag)
                    for start in range(0, stat.size, _BLOCK_BYTES)
                )
                for block in receiving.watch(ranges):
                    digest.update(block)
                    sink.write(block)
            if digest.hexdigest() != output.sha256:
                partial.unlink()
                raise SourceChanged(f"{OUT}/{output.key} is no longer this job's: a later one wrote it")
            partial.replace(target)
            yield target
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be written: {error.strerror}", field="--out") from error
