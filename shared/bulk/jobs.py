"""A bulk job: what was asked for, under which keys its state lies, and what it tells of itself.

All state is blobs of the `out` container below jobs/JOB/, only ever created or replaced whole:
    job.json                   the job; there from its first moment
    chunks/000000-512.arrow    rows of the input (number, how many), see shared.bulk.rows
    bad/000000.jsonl           rows that could not be read, of 512 at most; numbered on its own
    split.json                 all chunks are there
    parts/000000-512.arrow     a chunk with its vectors
    failed/000000-3.jsonl      rows of that chunk that have no vector (how many), and why
    cancel                     someone wants it to end
    status.json                for people; written now and then while it runs
    final.json                 what its output is made of, while it is being written
    manifest.json              it has ended; written last
Beside them active/JOB exists while a job runs (of one with an id given by the caller also before, with
the message that splits it), and events/HASH once a version of an input
was seen: empty until a splitter has signed it with the job's id.

Does not know storage, models or how rows become vectors.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Literal, TypeAlias, TypeVar

import msgspec

from shared.bulk.inputs.detect import Kind
from shared.bulk.options import Container, JobOptions
from shared.cards import Device
from shared.errors import InvalidMessage
from shared.storage.blobs import BlobStat, is_key

State: TypeAlias = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "cancelling", "cancelled"
]
"""OpenAI Batch's statuses, but expired: a job here has no end of its time."""

ENDED: frozenset[State] = frozenset(("failed", "completed", "cancelled"))

_JOB, _CHUNK = re.compile(r"[\w-]{0,64}", re.ASCII), re.compile(r"[\w.-]{0,64}", re.ASCII)

T = TypeVar("T")


class Job(msgspec.Struct, frozen=True):
    """container, source, etag: the version of the input. revision: of the model, the same for all parts.

    container: "out" for an uploaded file, whose outputs are files too, in the same folder: whoever owns
    the one owns the others. keep_s: so long those are kept; 0: for ever. created: Unix seconds. kind: of
    the input; "batch" has OpenAI's output. device: where its chunks go. sidecar: whether there was one
    when the options were read; None for an uploaded file, which has none.
    """

    id: str
    container: Container
    source: str
    etag: str
    size: int
    options: JobOptions
    revision: str
    dimensions: int
    device: Device
    created: int
    kind: Kind
    compression: Literal["gzip", "zstd"] | None = None
    sidecar: bool | None = None
    keep_s: int = 0

    @property
    def output(self) -> str:
        """The output's key. The source's extension stays: a.csv and a.jsonl are two inputs."""
        if self.container == "out":
            return f"{self.source.rpartition('/')[0]}/file-{self.id}-output"
        return f"{self.source}.{'jsonl' if self.kind == 'batch' else self.options.format}"

    @property
    def errors(self) -> str:
        if self.container == "out":
            return f"{self.source.rpartition('/')[0]}/file-{self.id}-errors"
        return f"{self.source}.errors.jsonl"


class Split(msgspec.Struct, frozen=True):
    """chunks: all, those of bad rows alone included; parts: those with rows.

    rows, bad: as in Counts; rows: bad ones included.
    """

    chunks: int
    parts: int
    rows: int
    bad: int


class Counts(msgspec.Struct, frozen=True):
    """Rows; of OpenAI Batch requests, whose texts are rows. total: known once all was read."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is told of a job. Times are Unix seconds. model: None where it is not known.

    options: what it runs with, but for defaults. sidecar: as in Job. finalizing_at: when its output was
    begun, told once it has completed. output: None, too, where no request of OpenAI Batch has an answer.
    error: why it failed as a whole, `code` and `field` as a BlitzError has them. truncated: how many
    texts were longer than the model reads, and cut, once it has ended; None: nobody told.
    """

    id: str
    status: State
    source: str
    model: str | None
    created_at: int
    request_counts: Counts = Counts()
    options: JobOptions | None = None
    sidecar: bool | None = None
    finalizing_at: int | None = None
    ended_at: int | None = None
    output: str | None = None
    errors: str | None = None
    error: str | None = None
    code: str | None = None
    field: str | None = None
    truncated: int | None = None


class Output(msgspec.Struct, frozen=True):
    """A finished file. sha256: lower-case hex."""

    key: str
    size: int
    sha256: str


class JobManifest(msgspec.Struct, frozen=True):
    """How a job ended. tokens: fed to the model. seconds: from its creation to its end."""

    job: Job
    status: Status
    outputs: tuple[Output, ...]
    tokens: int
    seconds: float


class StepMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What queues carry. To split: container, key and etag; to embed: job and chunk; to finish: job.

    A job in a message to split is the id that it must get, for input that may be asked for repeatedly;
    keep_s then is the job's.
    """

    job: str = ""
    chunk: str = ""
    container: Container = "source"
    key: str = ""
    etag: str = ""
    keep_s: int = 0


def status_of(job: Job, state: State, counts: Counts) -> Status:
    """What there is to tell of every job."""
    return Status(
        job.id,
        state,
        job.source,
        job.options.model or None,
        job.created,
        counts,
        options=job.options,
        sidecar=job.sidecar,
    )


def draft_job(message: StepMessage, stat: BlobStat, now_s: float) -> Job:
    """What is known of an input before its options are read; enough to say why it is no job."""
    options = JobOptions()
    return Job(
        id=message.job or job_id(message.container, stat, options, ""),
        container=message.container,
        source=stat.key,
        etag=stat.etag,
        size=stat.size,
        options=options,
        revision="",
        dimensions=0,
        device="cpu",
        created=int(now_s),
        kind="jsonl",
        keep_s=message.keep_s,
    )


def job_id(container: Container, stat: BlobStat, options: JobOptions, revision: str) -> str:
    """24 hex digits: the same version of an input, model and options are the same job."""
    content = [container, stat.key, stat.etag, msgspec.to_builtins(options), revision]
    return sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:24]


def event_key(container: Container, key: str, etag: str) -> str:
    """Of the mark that a version of an input was seen."""
    return f"events/{sha256(f'{container}/{key}/{etag}'.encode()).hexdigest()[:32]}"


def chunk_name(index: int, rows: int) -> str:
    """ "000007-512.arrow": sorts by number, and a listing tells how many rows there are.

    rows: as in Counts; of OpenAI Batch the requests that begin in the chunk.
    """
    return f"{index:06d}-{rows}.arrow"


def failed_name(chunk: str, rows: int) -> str:
    """ "000007-3.jsonl", for that chunk."""
    return f"{chunk.partition('-')[0]}-{rows}.jsonl"


def rows_of(name: str) -> int:
    """How many rows a chunk or part has, or failed in it, by its name or key."""
    return int(name.rpartition("-")[2].partition(".")[0])


def index_of(name: str) -> int:
    """A chunk's number, by its name."""
    return int(name.partition("-")[0])


def read_message(body: bytes, *needed: str) -> StepMessage:
    """A message that has what a step needs of it. Raises InvalidMessage, which quotes nothing."""
    try:
        message = decode(body, StepMessage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidMessage("it is no message of a bulk step") from None
    if not message.job and not message.key:
        raise InvalidMessage("it names neither a job nor an input")
    missing = [name for name in needed if not getattr(message, name)]
    if missing:
        raise InvalidMessage(f"it has no {' and no '.join(missing)}")
    for name, pattern in (("job", _JOB), ("chunk", _CHUNK)):
        if not pattern.fullmatch(getattr(message, name)):
            raise InvalidMessage(f"its {name} cannot be one")
    if message.key and not is_key(message.key):
        raise InvalidMessage("its key cannot be one")
    return message


def encode(value: object) -> bytes:
    return msgspec.json.encode(value)


def decode(data: bytes, kind: type[T]) -> T:
    """What `encode` wrote."""
    return msgspec.json.decode(data, type=kind)
