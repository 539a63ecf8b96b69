"""What a published model is: the one description that builder, store and server share.

A manifest is `NAME/REVISION/manifest.json`, written last, so that its presence means every file it
lists is there. `NAME/current` (JSON, device -> revision) points at what is served. This module does
not know where files live.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection
from typing import Annotated, Literal, TypeAlias

import msgspec

from shared.errors import InvalidArtefact, InvalidInput

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
POINTER_FILE = "current"

MAX_FILE_BYTES = 1 << 40
MAX_TOKENIZER_BYTES = 128 << 20
"""The largest that models come with, of 260,000 tokens, have 35 MB."""
MAX_TOKEN_ID = 2**31 - 1
MAX_TOKENS = 1 << 20
MAX_DIMENSIONS = 1 << 16
MAX_NAMES = 1_000
"""Of prompts, and of labels."""

Device: TypeAlias = Literal["cpu", "gpu"]
Target: TypeAlias = Literal["cpu-int8", "cpu-fp32", "gpu-fp16"]
Pooling: TypeAlias = Literal["mean", "cls", "max", "last", "weighted_mean"]
Task: TypeAlias = Literal["embedding", "cross-encoder"]
Activation: TypeAlias = Literal["identity", "tanh", "relu"]

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One artefact: a flat file name, size in bytes, sha256 as lower-case hex."""

    name: str
    size: int
    sha256: str


class Dense(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Dense layer after pooling. file: safetensors with `weight` (out, in) and maybe `bias` (out,)."""

    file: str
    activation: Activation


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights came from: a hub id, package or folder name; its revision or content hash."""

    name: str
    revision: str


class Quality(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Measured through the serving code against the FP32 original, on the machine that built it.

    batch_max_abs_diff: how far anything in a result moves between an input alone and among 31 others.
    inputs_per_s: texts, or pairs of a cross-encoder.
    cosine_*: an embedding model's vectors with the original's.
    rank_agreement_*: a cross-encoder's Spearman correlation with the original, over the documents of
        each sample query. score_*_abs_diff: between their scores, 0 to 1.
    """

    batch_max_abs_diff: float
    load_s: float
    inputs_per_s: float
    cosine_mean: float | None = None
    cosine_p01: float | None = None
    cosine_min: float | None = None
    rank_agreement_mean: float | None = None
    rank_agreement_min: float | None = None
    score_mean_abs_diff: float | None = None
    score_max_abs_diff: float | None = None
    evaluations: dict[str, float] = {}


_Bytes: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class TextMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What running one text takes beside the loaded model, in bytes.

    T tokens take T * per_token + T * T * per_pair at most: engines may hold a number for each pair of
    tokens that attend to each other. A micro-batch takes as much for each of its texts.
    """

    per_token: _Bytes
    per_pair: _Bytes

    def bytes_of(self, tokens: int) -> int:
        return math.ceil(tokens * (self.per_token + tokens * self.per_pair))

    def tokens_within(self, memory_bytes: int) -> int:
        """The longest text that takes no more."""
        if not self.per_token and not self.per_pair:
            return sys.maxsize
        # The root of per_pair * T * T + per_token * T = memory_bytes, in the form that divides by no 0.
        root = math.sqrt(self.per_token**2 + 4 * self.per_pair * memory_bytes)
        tokens = int(2 * memory_bytes / (self.per_token + root))
        return tokens if self.bytes_of(tokens) <= memory_bytes else tokens - 1


WEIGHTLESS = TextMemory(0.0, 0.0)
_UNMEASURED: dict[str, TextMemory] = {
    # ONNX Runtime, with attention of 16 heads that keeps four matrices of T * T floats each.
    "cpu": TextMemory(65_536.0, 256.0),
    # torch's attention keeps no such matrix, and an allocation that fails ends no process.
    "gpu": WEIGHTLESS,
}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A published model.

    max_tokens: longest input the model reads, special tokens included.
    dimensions: length of the full vector; of a cross-encoder, the number of its labels.
    pooling, normalize: of an embedding model only; normalize: whether the original ends in a Normalize
        module (what "the model's own vector" means).
    matryoshka_dimensions: lengths the vector was trained to be cut to.
    labels: of a cross-encoder, what each logit means; empty for an embedding model.
    prompts: name -> text prepended; default_prompt: the one used when a request names none.
    tools: name -> version of what built it. created: when, in Unix seconds.
    memory: measured when it was built; None: it was not, see text_memory.
    """

    schema_version: int
    name: str
    revision: str
    task: Task
    target: Target
    architecture: str
    source: Source
    files: tuple[File, ...]
    model_file: str
    tokenizer_file: str
    pad_token_id: int
    max_tokens: int
    dimensions: int
    pooling: Pooling | None = None
    normalize: bool = False
    labels: tuple[str, ...] = ()
    matryoshka_dimensions: tuple[int, ...] = ()
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    dense: tuple[Dense, ...] = ()
    tools: dict[str, str] = {}
    created: int = 0
    quality: Quality | None = None
    memory: TextMemory | None = None

    @property
    def text_memory(self) -> TextMemory:
        """As measured, or else what is assumed of a base model."""
        return self.memory or _UNMEASURED[self.device]

    @property
    def device(self) -> Device:
        return "gpu" if self.target.startswith("gpu") else "cpu"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def is_name(name: str) -> bool:
    """Whether `name` can be a model's or a revision's name.

    The pattern is what keeps a name inside the store: no separators, no leading or trailing dot.
    """
    return _NAME.fullmatch(name) is not None


def check_prompt(name: str, known: Collection[str]) -> None:
    """Raises InvalidInput if a model's prompts `known` have none of that name."""
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise InvalidInput(f"this model has no such prompt; it has: {names}", field="prompt_name")


def check_name(name: str, *, field: str = "model") -> str:
    """Return `name` if it can be one; InvalidInput otherwise."""
    if not is_name(name):
        raise InvalidInput(
            "a model name is 1 to 128 letters, digits, '.', '_' or '-', "
            "and begins and ends with a letter or digit",
            field=field,
        )
    return name


def pinned_name(name: str, revision: str) -> str:
    """NAME@REVISION: that revision of a model, whatever `current` points at. '@' is in no name."""
    return f"{name}@{revision}"


def split_pinned(name: str) -> tuple[str, str]:
    """NAME and REVISION of a pinned name; no revision ("") for another one."""
    plain, _, revision = name.partition("@")
    return plain, revision


def decode_manifest(data: bytes) -> Manifest:
    """Parse and check a manifest. Raises InvalidArtefact that says what is wrong."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise InvalidArtefact(f"the manifest is not valid: {error}") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise InvalidArtefact(
            f"the manifest has schema {manifest.schema_version}; this version reads {SCHEMA_VERSION}"
        )
    _check_numbers(manifest)
    names = {file.name for file in manifest.files}
    if len(names) < len(manifest.files):
        raise InvalidArtefact("the manifest lists a file twice")
    for name in names:
        if not _FILE.fullmatch(name):
            raise InvalidArtefact("the manifest lists a file name with a path or odd characters")
    if MANIFEST_FILE in names:
        raise InvalidArtefact(f"the manifest lists {MANIFEST_FILE} among its artefacts")
    if (manifest.task == "embedding") != (manifest.pooling is not None):
        raise InvalidArtefact("an embedding model needs a pooling, a cross-encoder has none")
    if len(manifest.labels) != (manifest.dimensions if manifest.task == "cross-encoder" else 0):
        raise InvalidArtefact("a cross-encoder has one label for each logit, an embedding model none")
    needed = {manifest.model_file, manifest.tokenizer_file, *(d.file for d in manifest.dense)}
    if missing := needed - names:
        raise InvalidArtefact(f"the manifest does not list {', '.join(sorted(missing))}")
    return manifest


def _check_numbers(manifest: Manifest) -> None:
    """What is reserved, read or sent by these numbers is so within bounds. Raises InvalidArtefact."""
    sizes = {file.name: file.size for file in manifest.files}
    bounds = (
        ("a file's size", min(sizes.values(), default=0), 0, MAX_FILE_BYTES),
        ("a file's size", max(sizes.values(), default=0), 0, MAX_FILE_BYTES),
        ("the tokenizer's size", sizes.get(manifest.tokenizer_file, 0), 0, MAX_TOKENIZER_BYTES),
        ("pad_token_id", manifest.pad_token_id, 0, MAX_TOKEN_ID),
        ("max_tokens", manifest.max_tokens, 1, MAX_TOKENS),
        ("dimensions", manifest.dimensions, 1, MAX_DIMENSIONS),
        ("the number of prompts", len(manifest.prompts), 0, MAX_NAMES),
        ("the number of labels", len(manifest.labels), 0, MAX_NAMES),
    )
    for what, number, least, most in bounds:
        if not least <= number <= most:
            raise InvalidArtefact(f"the manifest has {number} as {what}; {least} to {most} is right")


def encode_manifest(manifest: Manifest) -> bytes:
    """Pretty JSON, stable field order, one trailing newline."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_pointer(data: bytes) -> dict[Device, str]:
    """Parse `NAME/current`: device -> revision. Raises InvalidArtefact."""
    try:
        return msgspec.json.decode(data, type=dict[Device, str])
    except msgspec.DecodeError as error:
        raise InvalidArtefact(f"the pointer '{POINTER_FILE}' is not valid: {error}") from error


def encode_pointer(revisions: dict[Device, str]) -> bytes:
    return msgspec.json.encode(revisions, order="sorted") + b"\n"
