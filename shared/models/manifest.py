"""The manifest: the description of a published model that builder, store and server share.

A manifest is `NAME/REVISION/manifest.json`, written last, so that its presence means every file it
lists is there. `NAME/current` (JSON, device -> revision) points at the served revisions. Does not know
where files are stored.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from shared.cards import WEIGHTLESS, Device, Task, TextMemory
from shared.errors import InvalidArtefact
from shared.vectors import Activation, Poolings, SparseActivation, poolings_of

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
POINTER_FILE = "current"

MAX_FILE_BYTES = 1 << 40
MAX_TOKENIZER_BYTES = 128 << 20
"""The largest known, of 260,000 tokens, have 35 MB."""
MAX_TOKEN_ID = 2**31 - 1
MAX_TOKENS = 1 << 20
MAX_DIMENSIONS = 1 << 16
MAX_VOCABULARY = 1 << 20
"""Dimensions of a sparse model's vectors. The largest vocabularies have 262,144 tokens."""
MAX_NAMES = 1_000
"""Maximum number of prompts, and of labels."""
MAX_POOLINGS = 8
"""More than there are, each of which makes a vector longer by its tokens' width."""

_LEAST_RANGE = 1e-3

RouteName: TypeAlias = Literal["query", "document"]
"""What a route's texts are: the prompt of that name, or the input type, chooses it."""
Target: TypeAlias = Literal[
    "cpu-int8", "cpu-int8-static", "cpu-bf16", "cpu-fp32", "cpu-static", "gpu-fp16"
]
"""Where a model runs and in which numbers. cpu-int8: weights and each row of activations scaled by
themselves. cpu-int8-static: activations by scales that were calibrated. cpu-static: no transformer but a
table of static embeddings."""
OPENVINO_TARGETS: frozenset[Target] = frozenset({"cpu-int8-static", "cpu-bf16"})
"""Targets that an optional package of the CPU app runs."""
Head: TypeAlias = Literal["none", "words", "labels"]
"""What a transformer has behind its layers: a row for each word, or for each label."""

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


class ModelRoute(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a route has of its own; its fields are those of Manifest."""

    target: Target
    architecture: str
    model_file: str
    tokenizer_file: str
    pad_token_id: int
    max_tokens: int
    pooling: Poolings
    layers: tuple[LayerFile, ...] = ()


class SparseHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a sparse model makes one number for each word of its vocabulary.

    A text's T tokens have (T, V) logits. Of those `activation` is taken, and `pooling` over the tokens.

    activation: log(1 + max(0, x)), or log(1 + that). file: on a CPU, the graph of the last layer, whose
    inputs are `hidden` (N, H) and whose output is (N, V). most: so many of the numbers are kept, the
    largest; 0: all.
    """

    pooling: Literal["max", "sum"] = "max"
    activation: SparseActivation = "relu"
    file: str = ""
    most: Annotated[int, msgspec.Meta(ge=0, le=MAX_VOCABULARY)] = 0


_Length: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]


class LateInteraction(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """How a multi-vector model reads queries and documents; max_tokens is the longer of the two.

    query_tokens, document_tokens: what is read of each. expanded_to: shorter queries are filled up to
    so many tokens with `expansion_token`, whose vectors count; attends: whether others attend to them.
    skipped: tokens of documents that get no vector; skips_in_queries: of queries neither.
    mean: whether a score is divided by the number of the query's vectors.
    """

    query_tokens: _Length
    document_tokens: _Length
    expanded_to: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)] = 0
    expansion_token: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN_ID)] = 0
    attends: bool = False
    skipped: Annotated[tuple[int, ...], msgspec.Meta(max_length=10_000)] = ()
    skips_in_queries: bool = False
    mean: bool = False


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
    cosine_*: a model's vectors with the original's; of a multi-vector model, its tokens'.
        cosine_centred: after what all texts have in common is subtracted. cosine_low_share: of the
        texts that are below the limit `cosine_low`.
    limits: what the figures had to reach to be published.
    kept_fp32: layers of an INT8 model that are in FP32, because INT8 cost too much there, the most
        costly first. kept_fp32_share: of the linear layers' multiplications. kept_fp32_time: what the
        model takes, divided by what it took all in INT8.
    outputs: form of a vector (float, int8, binary, 256 dimensions, ...) -> Spearman's correlation of the
        similarities of sample texts with the original's; null where it is not defined.
    int8_largest: the largest number of the sample texts' int8 vectors, of 127.
    rank_agreement_*: a cross-encoder's Spearman correlation with the original, over the documents of
        each sample query. score_*_abs_diff: between their scores, 0 to 1. Sparse and
        multi-vector models have cosines and rank agreement.
    active_mean: numbers that are not 0 in a sparse model's vectors.
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
    active_mean: float | None = None
    limits: dict[str, float] = {}
    kept_fp32: tuple[str, ...] = ()
    kept_fp32_share: float = 0.0
    kept_fp32_time: float | None = None
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


_OF_FEW = ("template", "sparse", "late_interaction", "routes")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A published model.

    max_tokens: longest input, special tokens included.
    dimensions: length of the full vector; of a cross-encoder, the number of its labels.
    sparse: of a sparse model only; late_interaction: of a multi-vector model only.
    pooling: of an embedding model, and of a cross-encoder without a classification head: layers make its
        score of the pooled row. Of several poolings the results stand one behind the other.
    normalize: of an embedding or multi-vector model, whether the original ends in a Normalize module.
    layers: after pooling, in order. In JSON their name is "dense", which all were once.
    matryoshka_dimensions: shorter lengths that the vector was trained for.
    int8_ranges: dimensions -> the number that becomes 127 in int8 answers of at least so many. Empty in
        manifests of before it was calibrated: 1 for all.
    labels: of a cross-encoder, one per logit; empty for an embedding model.
    template: how a cross-encoder's pairs become one text; None: they are two segments.
    prompts: name -> prepended text; default_prompt: used if a request names none.
    tools: name -> version of the build tools. created: Unix seconds.
    memory: measured at build; None: not measured, see text_memory.
    routes: of a model whose queries take another way than its documents, the way that the other fields
        do not describe; those are of all other texts too.
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
    int8_ranges: dict[int, float] = {}
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    layers: tuple[LayerFile, ...] = msgspec.field(default=(), name="dense")
    tools: dict[str, str] = {}
    created: int = 0
    quality: Quality | None = None
    memory: TextMemory | None = None
    sparse: SparseHead | None = None
    late_interaction: LateInteraction | None = None
    routes: dict[RouteName, ModelRoute] | None = None

    def of_route(self, name: str) -> Manifest:
        """The model that texts of that route take, as a manifest without routes."""
        route = (self.routes or {}).get(name)  # type: ignore[call-overload]
        fields = msgspec.structs.asdict(route) if route else {}
        return msgspec.structs.replace(self, routes=None, **fields)

    @property
    def text_memory(self) -> TextMemory:
        """The measured memory, or else an assumption for a base model."""
        return self.memory or _UNMEASURED[self.device]

    def int8_range(self, dimensions: int | None = None) -> float:
        """The number that becomes 127 in int8 answers of so many dimensions; None: of all of them."""
        wanted = self.dimensions if dimensions is None else dimensions
        known = [size for size in self.int8_ranges if size <= wanted]
        return self.int8_ranges[max(known)] if known else 1.0

    @property
    def device(self) -> Device:
        """What the target runs on."""
        return "gpu" if self.target.startswith("gpu") else "cpu"

    @property
    def size(self) -> int:
        """Total bytes of all files."""
        return sum(file.size for file in self.files)


def head_of(task: Task, pooling: Poolings | None) -> Head:
    """The head that a model's transformer needs."""
    if task == "sparse":
        return "words"
    return "labels" if task == "cross-encoder" and not pooling else "none"


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
    _check_task(manifest)
    _check_files(manifest, names)
    _check_routes(manifest, names)
    return manifest


def _check_routes(manifest: Manifest, names: Collection[str]) -> None:
    """Raises InvalidArtefact."""
    if manifest.routes and manifest.task != "embedding":
        raise InvalidArtefact(f"a {manifest.task} model has no routes")
    for name in manifest.routes or ():
        part = manifest.of_route(name)
        _check_numbers(part)
        _check_files(part, names)


def _check_files(manifest: Manifest, names: Collection[str]) -> None:
    """Raises InvalidArtefact unless all that is loaded is among the names of files."""
    layers = {each.file for each in manifest.layers if each.kind != "unit"}
    needed = {manifest.model_file, manifest.tokenizer_file, *layers}
    if manifest.sparse is not None and manifest.device == "cpu":
        needed.add(manifest.sparse.file)
    if missing := needed - set(names):
        raise InvalidArtefact(f"the manifest does not list {', '.join(sorted(missing))}")


def _check_task(manifest: Manifest) -> None:
    """Raises InvalidArtefact for a task's fields that are missing, or another's that are there."""
    if manifest.task == "embedding" and not manifest.pooling:
        raise InvalidArtefact("an embedding model needs a pooling")
    if manifest.task in ("sparse", "multi-vector") and manifest.pooling:
        raise InvalidArtefact(f"a {manifest.task} model pools no vectors, and must have no pooling")
    if manifest.task != "cross-encoder" and manifest.template:
        raise InvalidArtefact(f"a {manifest.task} model reads no pairs, and must have no template")
    for task, described in (("sparse", manifest.sparse), ("multi-vector", manifest.late_interaction)):
        if (manifest.task == task) != (described is not None):
            raise InvalidArtefact(f"a {task} model needs its description; others must have none")
    if len(manifest.labels) != (manifest.dimensions if manifest.task == "cross-encoder" else 0):
        raise InvalidArtefact("a cross-encoder needs one label per logit; others must have none")


def _check_numbers(manifest: Manifest) -> None:
    """Bound the numbers that later determine allocations and reads. Raises InvalidArtefact."""
    sizes = {file.name: file.size for file in manifest.files}
    bounds = (
        ("a file's size", min(sizes.values(), default=0), 0, MAX_FILE_BYTES),
        ("a file's size", max(sizes.values(), default=0), 0, MAX_FILE_BYTES),
        ("the tokenizer's size", sizes.get(manifest.tokenizer_file, 0), 0, MAX_TOKENIZER_BYTES),
        ("pad_token_id", manifest.pad_token_id, 0, MAX_TOKEN_ID),
        ("max_tokens", manifest.max_tokens, 1, MAX_TOKENS),
        ("dimensions", manifest.dimensions, 1, MAX_VOCABULARY if manifest.sparse else MAX_DIMENSIONS),
        ("the number of prompts", len(manifest.prompts), 0, MAX_NAMES),
        ("the number of poolings", len(poolings_of(manifest.pooling or ())), 0, MAX_POOLINGS),
        ("the number of labels", len(manifest.labels), 0, MAX_NAMES),
        ("the number of int8 ranges", len(manifest.int8_ranges), 0, MAX_NAMES),
        ("an int8 range", min(manifest.int8_ranges.values(), default=1), _LEAST_RANGE, 1),
        ("an int8 range", max(manifest.int8_ranges.values(), default=1), _LEAST_RANGE, 1),
    )
    for what, number, least, most in bounds:
        if not least <= number <= most:
            raise InvalidArtefact(f"the manifest has {number} as {what}; it must be {least} to {most}")


def encode_manifest(manifest: Manifest) -> bytes:
    """Pretty JSON, stable field order, one trailing newline."""
    return msgspec.json.format(msgspec.json.encode(manifest_fields(manifest)), indent=2) + b"\n"


def manifest_fields(manifest: Manifest) -> dict[str, Any]:
    """What its JSON says, by name. A model that lacks what few have has the fields, and the revision,
    that it had before there was such a thing."""
    fields: dict[str, Any] = msgspec.to_builtins(manifest, str_keys=True)
    return {name: value for name, value in fields.items() if value is not None or name not in _OF_FEW}


def decode_pointer(data: bytes) -> dict[Device, str]:
    """Parse `NAME/current`: device -> revision. Raises InvalidArtefact."""
    try:
        return msgspec.json.decode(data, type=dict[Device, str])
    except msgspec.DecodeError as error:
        raise InvalidArtefact(f"the pointer '{POINTER_FILE}' is not valid: {error}") from error


def encode_pointer(revisions: dict[Device, str]) -> bytes:
    """The bytes of a model's pointer: a JSON object of device -> current revision."""
    return msgspec.json.encode(revisions, order="sorted") + b"\n"
