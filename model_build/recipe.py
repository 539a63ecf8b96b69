"""Puts a model's published files together from its weights: without torch, and to the same bytes.

It does not know how the files were built, what is in them or where they are published.

A recipe is what is left of the published files when everything that can be computed from the original's
tensors is taken out: a skeleton of each file, and for each hole in it a tensor and the form in which it
stood there. The manifest is that of the build which was measured, and has the sha256 of every file.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from model_build.describe import TOKENIZER_FILE, WEIGHTS_FILE, file_of
from model_build.rounding import quantize_columns, quantize_rows
from shared.errors import InvalidArtefact, InvalidInput
from shared.models.manifest import File, Manifest

Form: TypeAlias = Literal["same", "float16", "columns", "column scales", "rows", "row scales"]
Originals: TypeAlias = Mapping[str, NDArray[Any]]
"""Tensor -> values, and the tokenizer's file under its name, as bytes."""

# A linear layer's weight is (out, in) in the original and (in, out) in the graph.
_FORMS: dict[Form, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "same": lambda tensor: tensor,
    "float16": lambda tensor: tensor.astype(np.float16),
    "columns": lambda weight: quantize_columns(weight.T)[0],
    "column scales": lambda weight: quantize_columns(weight.T)[1],
    "rows": lambda table: quantize_rows(table)[0],
    "row scales": lambda table: quantize_rows(table)[1],
}
_ORIGINALS = (WEIGHTS_FILE, TOKENIZER_FILE)
_MAX_SKELETON_BYTES = 1 << 20
"""A graph has some 100 KB. More are weights in a form that is not in the table."""


class Hole(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """at: how many of the skeleton's bytes come before. original: the name of a tensor, or of a file."""

    at: int
    original: str
    form: Form


class Skeleton(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file without what is computed. holes: in order. packed: the bytes between them, with zlib."""

    holes: tuple[Hole, ...]
    packed: bytes


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """originals: the files that it is made for. skeletons: for each file of the manifest."""

    manifest: Manifest
    originals: tuple[File, ...]
    skeletons: dict[str, Skeleton]


def decode_recipe(data: bytes) -> Recipe:
    """Of this repository, where a test compares it with a build."""
    return msgspec.json.decode(data, type=Recipe)


def encode_recipe(recipe: Recipe) -> bytes:
    """JSON, indented so that a manifest's change can be read in a diff."""
    return msgspec.json.format(msgspec.json.encode(recipe), indent=1) + b"\n"


def write_recipe(built: Path, manifest: Manifest, source: Path) -> Recipe:
    """What makes the files of `manifest`, which are in `built`, from the model's folder `source`.

    Raises InvalidInput (field "recipe") where the weights are in other files, or stand in a form that is
    not in the table.
    """
    for name in _ORIGINALS:
        if not (source / name).is_file():
            raise InvalidInput(
                f"there is no {name} to write a recipe for: leave --recipe out", field="recipe"
            )
    originals = _read_originals(source)
    forms = _all_forms(originals)
    skeletons = {}
    for file in manifest.files:
        skeletons[file.name] = skeleton = _take_out((built / file.name).read_bytes(), forms)
        if len(skeleton.packed) > _MAX_SKELETON_BYTES:
            raise InvalidInput(
                f"{file.name} holds weights in a form that no recipe has: leave --recipe out",
                field="recipe",
            )
    files = tuple(file_of(source / name) for name in _ORIGINALS)
    return Recipe(manifest, files, skeletons)


def follow_recipe(recipe: Recipe, source: Path, out: Path) -> None:
    """Write the files of the recipe's manifest into `out`. source: the folder of the original.

    Raises InvalidArtefact if an original is another one than the recipe's, or a file turned out
    otherwise than it was built.
    """
    for expected in recipe.originals:
        path = source / expected.name
        if not path.is_file() or file_of(path) != expected:
            raise InvalidArtefact(f"{expected.name} is not the one that the recipe was written for")
    originals = _read_originals(source)
    for file in recipe.manifest.files:
        content = _fill_in(recipe.skeletons[file.name], originals)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise InvalidArtefact(f"{file.name} did not turn out as it was built: its sha256 is another")
        (out / file.name).write_bytes(content)


def _read_originals(source: Path) -> Originals:
    tokenizer = np.frombuffer((source / TOKENIZER_FILE).read_bytes(), np.uint8)
    return {**load_file(source / WEIGHTS_FILE), TOKENIZER_FILE: tokenizer}


def _all_forms(originals: Originals) -> list[tuple[str, Form, bytes]]:
    """Every original in every form that it can stand in, the longest first."""
    found = [
        (name, form, _bytes_of(tensor, form))
        for name, tensor in originals.items()
        for form in _FORMS
        if form == "same" or (tensor.dtype == np.float32 and (form == "float16" or tensor.ndim == 2))
    ]
    # Bytes that are all alike, as zeros are, stand in many places and are no tensor's in particular.
    telling = [each for each in found if len(set(each[2])) > 1]
    return sorted(telling, key=lambda each: len(each[2]), reverse=True)


def _take_out(content: bytes, forms: list[tuple[str, Form, bytes]]) -> Skeleton:
    taken = np.zeros(len(content), bool)
    found: list[tuple[int, int, str, Form]] = []
    for original, form, wanted in forms:
        start = content.find(wanted)
        while start >= 0:
            end = start + len(wanted)
            if not taken[start:end].any():
                taken[start:end] = True
                found.append((start, end, original, form))
            start = content.find(wanted, end)
    holes, kept, reached = [], bytearray(), 0
    for start, end, original, form in sorted(found):
        kept += content[reached:start]
        holes.append(Hole(len(kept), original, form))
        reached = end
    kept += content[reached:]
    return Skeleton(tuple(holes), zlib.compress(bytes(kept), 9))


def _fill_in(skeleton: Skeleton, originals: Originals) -> bytes:
    kept, pieces, reached = zlib.decompress(skeleton.packed), [], 0
    for hole in skeleton.holes:
        pieces += [kept[reached : hole.at], _bytes_of(originals[hole.original], hole.form)]
        reached = hole.at
    return b"".join([*pieces, kept[reached:]])


def _bytes_of(tensor: NDArray[Any], form: Form) -> bytes:
    """In C order; little-endian, as every platform is that there are wheels for."""
    return _FORMS[form](tensor).tobytes()
