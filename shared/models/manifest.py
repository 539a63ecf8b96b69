"""The manifest: the description of a published model that builder, store and server share.

A manifest is `NAME/REVISION/manifest.json`, written last, so that its presence means every file it
lists is there. `NAME/current` (JSON, device -> revision) points at the served revisions. Does not know
where files are stored.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

import msgspec

from shared.cards import WEIGHTLESS, Device, Task, TextMemory
from shared.errors import InvalidArtefact
from shared.vectors import Activation, Poolings, poolings_of

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
POINTER_FILE = "current"

MAX_FILE_BYTES = 1 << 40
MAX_TOKENIZER_BYTES = 128 << 20
"""The largest known, of 260,000 tokens, have 35 MB."""
MAX_TOKEN_ID = 2**31 - 1
MAX_TOKENS = 1 << 20
MAX_DIMENSIONS = 1 << 16
MAX_NAMES = 1_000
"""Maximum number of prompts, and of labels."""
MAX_POOLINGS = 8
"""More than there are, each of which makes a vector longer by its tokens' width."""

Target: TypeAlias = Literal["cpu-int8", "cpu-fp32", "cpu-static", "gpu-fp16"]

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One artefact: a flat file name, size in bytes, sha256 as lower-case hex."""

    name: str
    size: int
    sha256: str


class LayerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A layer after pooling. file: its safetensors; "" where it has no weights.

    dense: `weight` (out, in), optional `bias` (out,). norm: `weight` and `bias` (D,). unit: none.
    activation: of a dense layer.
    """

    file: str
    activation: Activation
    kind: Literal["dense", "norm", "unit"] = "dense"


class PairTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text of a pair: before + query + between + document + after."""

    before: str
    between: str
    after: str


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Origin of the weights: a hub id, package or folder name; its revision or content hash."""

    name: str
    revision: str


class Quality(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Measured through the serving code against the FP32 original, on the build machine.

    batch_max_abs_diff: largest change of a result between an input alone and among 31 others.
    inputs_per_s: texts, or pairs for a cross-encoder.
    cosine_*: an embedding model's vectors with the original's. cosine_centred: after what all texts have
        in common is subtracted. cosine_low_share: of the texts that are below the limit `cosine_low`.
    limits: what the figures had to reach to be published.
    outputs: form of a vector (float, int8, binary, 256 dimensions, ...) -> Spearman's correlation of the
        similarities of sample texts with the original's; null where it is not defined.
    int8_largest: the largest number of the sample texts' int8 vectors, of 127.
    rank_agreement_*: a cross-encoder's Spearman correlation with the original, over the documents of
        each sample query. score_*_abs_diff: between their scores, 0 to 1.
    """

    batch_max_abs_diff: float
    load_s: float
    inputs_per_s: float
    cosine_mean: float | None = None
    cosine_p01: float | None = None
    cosine_min: float | None = None
    cosine_centred: float | None = None
    cosine_low_share: float | None = None
    rank_agreement_mean: float | None = None
    rank_agreement_min: float | None = None
    score_mean_abs_diff: float | None = None
    score_max_abs_diff: float | None = None
    limits: dict[str, float] = {}
    outputs: dict[str, float | None] = {}
    int8_largest: int | None = None
    evaluations: dict[str, float] = {}

    @property
    def closeness(self) -> float | None:
        """To the original, 1 is equal: the mean cosine, or of a cross-encoder the rank agreement."""
        return self.cosine_mean if self.cosine_mean is not None else self.rank_agreement_mean


_UNMEASURED: dict[str, TextMemory] = {
    # ONNX Runtime, with attention of 16 heads that keeps four matrices of T * T floats each.
    "cpu": TextMemory(65_536.0, 256.0),
    # torch's attention keeps no such matrix, and a failed allocation does not end the process.
    "gpu": WEIGHTLESS,
}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A published model.

    max_tokens: longest input, special tokens included.
    dimensions: length of the full vector; of a cross-encoder, the number of its labels.
    pooling: of an embedding model, and of a cross-encoder without a classification head: layers make its
        score of the pooled row. Of several poolings the results stand one behind the other.
    normalize: of an embedding model, whether the original ends in a Normalize module.
    layers: after pooling, in order. In JSON their name is "dense", which all were once.
    matryoshka_dimensions: shorter lengths that the vector was trained for.
    labels: of a cross-encoder, one per logit; empty for an embedding model.
    template: how a cross-encoder's pairs become one text; None: they are two segments.
    prompts: name -> prepended text; default_prompt: used if a request names none.
    tools: name -> version of the build tools. created: Unix seconds.
    memory: measured at build; None: not measured, see text_memory.
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
    pooling: Poolings | None = None
    normalize: bool = False
    labels: tuple[str, ...] = ()
    template: PairTemplate | None = None
    matryoshka_dimensions: tuple[int, ...] = ()
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    layers: tuple[LayerFile, ...] = msgspec.field(default=(), name="dense")
    tools: dict[str, str] = {}
    created: int = 0
    quality: Quality | None = None
    memory: TextMemory | None = None

    @property
    def text_memory(self) -> TextMemory:
        """The measured memory, or else an assumption for a base model."""
        return self.memory or _UNMEASURED[self.device]

    @property
    def device(self) -> Device:
        """What the target runs on."""
        return "gpu" if self.target.startswith("gpu") else "cpu"

    @property
    def size(self) -> int:
        """Total bytes of all files."""
        return sum(file.size for file in self.files)


def decode_manifest(data: bytes) -> Manifest:
    """Parse and check a manifest. Raises InvalidArtefact with the reason."""
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
    if manifest.task == "embedding" and not manifest.pooling:
        raise InvalidArtefact("an embedding model needs a pooling")
    if manifest.task == "embedding" and manifest.template is not None:
        raise InvalidArtefact("an embedding model reads no pairs, and must have no template")
    if len(manifest.labels) != (manifest.dimensions if manifest.task == "cross-encoder" else 0):
        raise InvalidArtefact(
            "a cross-encoder needs one label per logit; an embedding model must have none"
        )
    layers = {each.file for each in manifest.layers if each.kind != "unit"}
    needed = {manifest.model_file, manifest.tokenizer_file, *layers}
    if missing := needed - names:
        raise InvalidArtefact(f"the manifest does not list {', '.join(sorted(missing))}")
    return manifest


def _check_numbers(manifest: Manifest) -> None:
    """Bound the numbers that later determine allocations and reads. Raises InvalidArtefact."""
    sizes = {file.name: file.size for file in manifest.files}
    bounds = (
        ("a file's size", min(sizes.values(), default=0), 0, MAX_FILE_BYTES),
        ("a file's size", max(sizes.values(), default=0), 0, MAX_FILE_BYTES),
        ("the tokenizer's size", sizes.get(manifest.tokenizer_file, 0), 0, MAX_TOKENIZER_BYTES),
        ("pad_token_id", manifest.pad_token_id, 0, MAX_TOKEN_ID),
        ("max_tokens", manifest.max_tokens, 1, MAX_TOKENS),
        ("dimensions", manifest.dimensions, 1, MAX_DIMENSIONS),
        ("the number of prompts", len(manifest.prompts), 0, MAX_NAMES),
        ("the number of poolings", len(poolings_of(manifest.pooling or ())), 0, MAX_POOLINGS),
        ("the number of labels", len(manifest.labels), 0, MAX_NAMES),
    )
    for what, number, least, most in bounds:
        if not least <= number <= most:
            raise InvalidArtefact(f"the manifest has {number} as {what}; it must be {least} to {most}")


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
    """The bytes of a model's pointer: a JSON object of device -> current revision."""
    return msgspec.json.encode(revisions, order="sorted") + b"\n"
