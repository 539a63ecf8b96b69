"""Under which keys the state of bulk jobs lies: the one place that spells them.

All of it is blobs of the `out` container. They are written once, or replaced as a whole:
    jobs/JOB/job.json                   the job; there from its first moment
    jobs/JOB/chunks/000000-512.arrow    rows of the input (number, how many), see shared.bulk.rows
    jobs/JOB/bad/000000.jsonl           rows that could not be read, 512 at most; numbered on its own
    jobs/JOB/split.json                 all chunks are there
    jobs/JOB/parts/000000-512.arrow     an embedded chunk: the same rows with their vectors
    jobs/JOB/failed/000000-3.jsonl      rows of that chunk that have no vector (how many), and why
    jobs/JOB/cancel                     the job is to be cancelled
    jobs/JOB/status.json                for people; rewritten every few seconds while the job runs
    jobs/JOB/final.json                 what the output consists of, while it is written
    jobs/JOB/manifest.json              the job has ended; written last
    active/JOB                          the job runs. With an id given by the caller it is there before,
                                        and holds the message that splits the input
    events/HASH                         a version of an input was seen; holds its job's id, once known

Does not know what these blobs hold.
"""

from __future__ import annotations

from hashlib import sha256

import msgspec

JOBS, ACTIVE, EVENTS = "jobs/", "active/", "events/"

_MANIFEST, _STATUS = "manifest.json", "status.json"


class JobPaths(msgspec.Struct, frozen=True):
    """The keys of one job. `chunks`, `embedded`, `bad` and `failed` are prefixes of many keys."""

    job_id: str

    @property
    def folder(self) -> str:
        """All state of the job but its entry in `active`."""
        return f"{JOBS}{self.job_id}/"

    @property
    def job(self) -> str:
        """What the job is: its input, options and model."""
        return f"{self.folder}job.json"

    @property
    def split(self) -> str:
        """How many chunks and rows the input has; written when all chunks are."""
        return f"{self.folder}split.json"

    @property
    def cancel(self) -> str:
        """There once the job is to be cancelled."""
        return f"{self.folder}cancel"

    @property
    def status(self) -> str:
        """Its status as users read it."""
        return f"{self.folder}{_STATUS}"

    @property
    def final(self) -> str:
        """What its end will be, before the output is written."""
        return f"{self.folder}final.json"

    @property
    def manifest(self) -> str:
        """Its result; written last."""
        return f"{self.folder}{_MANIFEST}"

    @property
    def active(self) -> str:
        """There while the job runs, so that one listing finds all that do."""
        return f"{ACTIVE}{self.job_id}"

    @property
    def chunks(self) -> str:
        """Folder of the chunks to embed."""
        return f"{self.folder}chunks/"

    @property
    def embedded(self) -> str:
        """Folder of the embedded chunks."""
        # The word of an earlier version: jobs that run while the service is updated have it.
        return f"{self.folder}parts/"

    @property
    def bad(self) -> str:
        """Folder of the rows that could not be read."""
        return f"{self.folder}bad/"

    @property
    def failed(self) -> str:
        """Folder of the rows that could not be embedded."""
        return f"{self.folder}failed/"

    def chunk(self, name: str) -> str:
        """name: as `chunk_name` gives it."""
        return f"{self.chunks}{name}"

    def chunks_numbered(self, index: int) -> str:
        """The prefix of the one chunk of that number."""
        return f"{self.chunks}{index:06d}-"

    def embedded_chunk(self, name: str) -> str:
        """A chunk's rows with their vectors."""
        return f"{self.embedded}{name}"

    def bad_rows(self, index: int) -> str:
        """Rows that could not be read, of one chunk of the input."""
        return f"{self.bad}{index:06d}.jsonl"

    def failed_rows(self, chunk: str, rows: int) -> str:
        """rows: how many of the chunk's have no vector."""
        return f"{self.failed}{chunk.partition('-')[0]}-{rows}.jsonl"


def chunk_name(index: int, rows: int) -> str:
    """ "000007-512.arrow": sorts by number, and a listing tells how many rows there are.

    rows: as in Counts; of OpenAI Batch the requests that begin in the chunk.
    """
    return f"{index:06d}-{rows}.arrow"


def rows_of(key: str) -> int:
    """How many rows a chunk has, embedded or not, or how many failed in it, by its name or key."""
    return int(key.rpartition("-")[2].partition(".")[0])


def index_of(chunk: str) -> int:
    """A chunk's number, by its name."""
    return int(chunk.partition("-")[0])


def event_key(container: str, key: str, etag: str) -> str:
    """Of the mark that a version of an input was seen."""
    return f"{EVENTS}{sha256(f'{container}/{key}/{etag}'.encode()).hexdigest()[:32]}"


def job_of_status(key: str) -> str | None:
    """The id of the job whose status lies under `key`; None if it is another blob."""
    return _job_of(key, _STATUS)


def job_of_manifest(key: str) -> str | None:
    """The id of the job whose manifest has this key; None for any other key."""
    return _job_of(key, _MANIFEST)


def _job_of(key: str, name: str) -> str | None:
    if not key.startswith(JOBS) or not key.endswith(f"/{name}"):
        return None
    return key.removeprefix(JOBS).removesuffix(f"/{name}")
