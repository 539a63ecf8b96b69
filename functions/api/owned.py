"""What one owner has in the bulk storage: its files and batches, and how much more it may have.

An owner is a key, see functions.keys; each has a folder of its own, so that nothing of another's is ever
looked at. Does not know HTTP. Everything here blocks: call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import msgspec

from shared.bulk import control, openai
from shared.bulk.openai import BatchRecord
from shared.bulk.steps.expiry import has_expired
from shared.errors import Overloaded, QuotaExceeded
from shared.storage.blobs import Blobs, BlobStat

_RETRY_S = 60.0
"""A batch under way seldom ends sooner."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What one owner may have: so many files, and records of batches; bytes of files; batches under way.

    What is under way elsewhere is not seen: each upload and each batch that begins at the same moment
    may go beyond it, by one file or batch.
    """

    files: int
    file_bytes: int
    batches: int


class Owned:
    """owner: "" is everyone, where no keys are known. clock: Unix seconds. Raises as storage does."""

    def __init__(self, out: Blobs, owner: str, quota: Quota, clock: Callable[[], float]) -> None:
        self._out = out
        self._files = openai.files_of(owner)
        self._batches = openai.batches_of(owner)
        self._quota = quota
        self._clock = clock

    def files(self) -> list[BlobStat]:
        """In no order."""
        now = self._clock()
        return [stat for stat in self._in(self._files) if not has_expired(stat, now)]

    def new_file_key(self) -> str:
        return f"{self._files}file-{openai.new_id()}"

    def file(self, file_id: str, field: str | None = None) -> BlobStat:
        """Raises NotFound, for another's file too."""
        stat = self._out.stat(self._files + openai.check_file_id(file_id, field))
        if stat is None or has_expired(stat, self._clock()):
            raise openai.no_file(field)
        return stat

    def batch(self, batch_id: str) -> BatchRecord:
        """Raises NotFound, for another's batch too."""
        batch = self._read(self._batches + openai.check_batch_id(batch_id))
        if batch is None:
            raise openai.no_batch()
        return batch

    def batches(self, after: str, limit: int) -> list[BatchRecord]:
        """So many at most, newest first, of those after a batch's id, if one is given."""
        last = self._batches + openai.check_batch_id(after) if after else ""
        # Ids sort newest first, so that this ends early.
        keys = (stat.key for stat in self._in(self._batches) if stat.key > last)
        found = (batch for batch in map(self._read, keys) if batch is not None)
        return list(islice(found, limit))

    def add(self, batch: BatchRecord, metadata: dict[str, str]) -> None:
        self._out.write(self._batches + batch.id, msgspec.json.encode(batch), metadata)

    def free_bytes(self) -> int:
        """What one more file may have. Raises QuotaExceeded if there may be none."""
        files = self.files()
        if len(files) >= self._quota.files:
            raise self._exceeded(f"files, and {len(files)} are there", self._quota.files)
        free = self._quota.file_bytes - sum(stat.size for stat in files)
        if free <= 0:
            raise self.too_many_bytes(free)
        return free

    def too_many_bytes(self, free: int) -> QuotaExceeded:
        """What to tell of a file that is larger than the `free` bytes that are left."""
        used = self._quota.file_bytes - free
        return self._exceeded(f"bytes of files, and {used} are used", self._quota.file_bytes)

    def check_new_batch(self) -> None:
        """Raises QuotaExceeded, and Overloaded while too many are under way."""
        self.free_bytes()  # for its output; how large that will be nobody knows
        jobs = {stat.key.rpartition("batch_")[2] for stat in self._in(self._batches)}
        if len(jobs) >= self._quota.files:
            raise QuotaExceeded(
                f"a caller may have {self._quota.files} batches, those included that have ended, and "
                f"{len(jobs)} are there: wait until old ones expire"
            )
        active = control.active_jobs(self._out)
        if len(jobs & active) >= self._quota.batches:
            raise Overloaded(
                f"a caller may have {self._quota.batches} batches under way, and {len(jobs & active)} "
                "are: retry when one has ended, or cancel one",
                retry_after_s=_RETRY_S,
            )

    def _in(self, folder: str) -> Iterator[BlobStat]:
        """Not what is in folders below: those are other owners'."""
        return (stat for stat in self._out.list(folder) if "/" not in stat.key.removeprefix(folder))

    def _read(self, key: str) -> BatchRecord | None:
        data = self._out.read(key)
        batch = msgspec.json.decode(data, type=BatchRecord) if data is not None else None
        if batch is None or (batch.expires_at is not None and batch.expires_at <= self._clock()):
            return None
        return batch

    @staticmethod
    def _exceeded(what: str, limit: int) -> QuotaExceeded:
        return QuotaExceeded(
            f"a caller may have {limit} {what}: delete files that are done with, or wait until they "
            "expire"
        )
