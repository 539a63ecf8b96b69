"""A bulk job: what was asked for, how far it is, how it ended, and the messages between its steps.

Does not know storage, the keys of its state (paths.py), models or how rows become vectors.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Literal, TypeAlias, TypeVar

import msgspec

from shared.bulk.inputs.detect import Kind
from shared.bulk.options import Container, JobOptions
from shared.cards import Device, Task
from shared.errors import InvalidMessage
from shared.storage.blobs import BlobStat, is_key

State: TypeAlias = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "cancelling", "cancelled"
]
"""OpenAI Batch's statuses without "expired": jobs have no time limit."""

ENDED: frozenset[State] = frozenset(("failed", "completed", "cancelled"))

_JOB, _CHUNK = re.compile(r"[\w-]{0,64}", re.ASCII), re.compile(r"[\w.-]{0,64}", re.ASCII)

T = TypeVar("T")


class Job(msgspec.Struct, frozen=True):
    """What is to be embedded, and how. Written once, when the job is created.

    container, source, etag: the version of the input. container: "out" for an uploaded file, whose
    outputs are files of the same owner, in the same folder. keep_s: how long those are kept; 0: for
    ever. revision: of the model, the same for all chunks. created: Unix seconds. kind: of the input;
    "batch" has OpenAI's output. device: where its chunks go. task: the model's. sidecar: whether there
    was one when the options were read; None for an uploaded file, which has none.
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
    task: Task = "embedding"

    @property
    def output(self) -> str:
        """The output's key. The source's extension stays: a.csv and a.jsonl are two inputs."""
        if self.container == "out":
            return f"{self.source.rpartition('/')[0]}/file-{self.id}-output"
        return f"{self.source}.{'jsonl' if self.kind == 'batch' else self.options.format}"

    @property
    def errors(self) -> str:
        """The key of the blob of failed rows, in `out`."""
        if self.container == "out":
            return f"{self.source.rpartition('/')[0]}/file-{self.id}-errors"
        return f"{self.source}.errors.jsonl"


class Split(msgspec.Struct, frozen=True):
    """chunks: all, those of bad rows alone included. to_embed: those that have rows to embed.

    rows, bad: as in Counts; rows: bad ones included.
    """

    chunks: int
    to_embed: int = msgspec.field(name="parts")  # as jobs have it that run while the service is updated
    rows: int
    bad: int


class Counts(msgspec.Struct, frozen=True):
    """Rows; of OpenAI Batch requests, whose texts are rows. total: known once all was read."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """What users see of a job. Times are Unix seconds. model: None where it is not known.

    options: what it runs with, without defaults. sidecar: as in Job. finalizing_at: when its output was
    begun, told once it has completed. output: None, too, where no request of OpenAI Batch has an answer.
    error: why it failed as a whole, with `code` and `field` of the BlitzError. truncated: how many
    texts were longer than the model reads, and cut, once it has ended; None: unknown.
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
    """How a job ended; written last. tokens: fed to the model. seconds: from its creation to its end."""

    job: Job
    status: Status
    outputs: tuple[Output, ...]
    tokens: int
    seconds: float


class StepMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message that starts a step. Split: container, key and etag; embed: job and chunk; finish: job.

    `job` in a message to split is the id that the job gets, for files that may be embedded repeatedly;
    keep_s then is the job's.
    """

    job: str = ""
    chunk: str = ""
    container: Container = "source"
    key: str = ""
    etag: str = ""
    keep_s: int = 0


def status_of(job: Job, state: State, counts: Counts) -> Status:
    """A status with what every job has."""
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
    """A job as far as it is known before its options are read; enough to record why it failed."""
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
            raise InvalidMessage(f"its {name} is not valid")
    if message.key and not is_key(message.key):
        raise InvalidMessage("its key is not valid")
    return message


def encode(value: object) -> bytes:
    """A state or message as JSON bytes."""
    return msgspec.json.encode(value)


def decode(data: bytes, kind: type[T]) -> T:
    """What `encode` wrote."""
    return msgspec.json.decode(data, type=kind)
