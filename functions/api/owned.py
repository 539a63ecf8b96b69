"""One owner's files and batches in the bulk storage, within a quota.

An owner is a key, see functions.keys. Each has its own folder, so that no code path reads another's.
Does not know HTTP. Everything here blocks: call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import msgspec

from shared.bulk import control, openai
from shared.bulk.openai import BatchRecord
from shared.bulk.steps.expiry import has_expired
from shared.errors import Overloaded, QuotaExceeded
from shared.storage.blobs import Blobs, BlobStat

_RETRY_S = 60.0
"""A running batch seldom ends sooner."""


class Quota(msgspec.Struct, frozen=True):
    """Limits of one owner. files: files, and records of batches. file_bytes: together. batches: running.

    Checked without a lock: uploads and batches that begin at the same moment may each exceed it by one.
    """

    files: int
    file_bytes: int
    batches: int


class Owned:
    """owner: "" is everyone, if keys are off. clock: Unix seconds. Raises what storage raises."""

    def __init__(self, out: Blobs, owner: str, quota: Quota, clock: Callable[[], float]) -> None:
        self._out = out
        self._files = openai.files_of(owner)
        self._batches = openai.batches_of(owner)
        self._quota = quota
        self._clock = clock

    def files(self) -> list[BlobStat]:
        """The files that have not expired, unordered."""
        now = self._clock()
        return [stat for stat in self._in(self._files) if not has_expired(stat, now)]

    def new_file_key(self) -> str:
        """The key of a new file, with a new id, in the caller's folder."""
        return f"{self._files}file-{openai.new_id()}"

    def file(self, file_id: str, field: str | None = None) -> BlobStat:
        """The file's metadata. Raises NotFound, also for another owner's file."""
        stat = self._out.stat(self._files + openai.check_file_id(file_id, field))
        if stat is None or has_expired(stat, self._clock()):
            raise openai.no_file(field)
        return stat

    def batch(self, batch_id: str) -> BatchRecord:
        """Raises NotFound, also for another owner's batch."""
        batch = self._read(self._batches + openai.check_batch_id(batch_id))
        if batch is None:
            raise openai.no_batch()
        return batch

    def batches(self, after: str, limit: int) -> list[BatchRecord]:
        """At most `limit` batches, newest first, from behind the id `after`; "": from the start."""
        last = self._batches + openai.check_batch_id(after) if after else ""
        # Ids sort newest first, so the iteration can stop early.
        keys = (stat.key for stat in self._in(self._batches) if stat.key > last)
        found = (batch for batch in map(self._read, keys) if batch is not None)
        return list(islice(found, limit))

    def add(self, batch: BatchRecord, metadata: dict[str, str]) -> None:
        """Write a new batch's record."""
        self._out.write(self._batches + batch.id, msgspec.json.encode(batch), metadata)

    def free_bytes(self) -> int:
        """Bytes left for one more file. Raises QuotaExceeded if the quota is used up."""
        files = self.files()
        if len(files) >= self._quota.files:
            raise self._exceeded(f"files, and has {len(files)}", self._quota.files)
        free = self._quota.file_bytes - sum(stat.size for stat in files)
        if free <= 0:
            raise self.too_many_bytes(free)
        return free

    def too_many_bytes(self, free: int) -> QuotaExceeded:
        """The error for a file that is larger than the `free` bytes left."""
        used = self._quota.file_bytes - free
        return self._exceeded(f"bytes of files, and has {used}", self._quota.file_bytes)

    def check_new_batch(self) -> None:
        """Raises QuotaExceeded; Overloaded while too many batches run."""
        self.free_bytes()  # for the output, whose size is not known yet
        jobs = {stat.key.rpartition("batch_")[2] for stat in self._in(self._batches)}
        if len(jobs) >= self._quota.files:
            raise QuotaExceeded(
                f"a caller may have {self._quota.files} batches, ended ones included, "
                f"and has {len(jobs)}: "
                "wait until old ones expire"
            )
        active = control.active_jobs(self._out)
        if len(jobs & active) >= self._quota.batches:
            raise Overloaded(
                f"a caller may have {self._quota.batches} running batches, "
                f"and has {len(jobs & active)}: "
                "retry when one has ended, or cancel one",
                retry_after_s=_RETRY_S,
            )

    def _in(self, folder: str) -> Iterator[BlobStat]:
        """Direct children only: subfolders belong to other owners."""
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
            f"a caller may have {limit} {what}: delete old files, or wait until they expire"
        )
