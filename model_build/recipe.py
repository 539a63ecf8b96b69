"""Assembles a model's published files from its weights: without torch, byte for byte.

A recipe is the published files minus everything that can be computed from the original's tensors: a
skeleton of each file, and for each hole the tensor and the form in which it stood there. The manifest is
that of the measured build, with the sha256 of every file.

It does not know how the files were built, what they mean or where they are published.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from model_build.describe import TOKENIZER_FILE, WEIGHTS_FILE, file_of
from model_build.heads import widen_heads
from model_build.rounding import quantize_columns, quantize_rows
from shared.errors import InvalidArtefact, InvalidInput
from shared.models.manifest import File, Manifest

Form: TypeAlias = Literal[
    "same",
    "float16",
    "columns",
    "column scales",
    "rows",
    "row scales",
    "head columns",
    "head column scales",
    "query bias",
    "key bias",
]
Originals: TypeAlias = Mapping[str, NDArray[Any]]
"""Tensor -> values, and the tokenizer's file under its name, as bytes."""

# A linear layer's weight is (out, in) in the original and (in, out) in the graph. The second argument is
# the number of heads, which some forms widen: see masked_keys.py.
_FORMS: dict[Form, Callable[[NDArray[Any], int], NDArray[Any]]] = {
    "same": lambda tensor, _: tensor,
    "float16": lambda tensor, _: tensor.astype(np.float16),
    "columns": lambda weight, _: quantize_columns(weight.T)[0],
    "column scales": lambda weight, _: quantize_columns(weight.T)[1],
    "rows": lambda table, _: quantize_rows(table)[0],
    "row scales": lambda table, _: quantize_rows(table)[1],
    "head columns": lambda weight, heads: quantize_columns(widen_heads(weight.T, heads))[0],
    "head column scales": lambda weight, heads: quantize_columns(widen_heads(weight.T, heads))[1],
    "query bias": lambda bias, heads: widen_heads(bias, heads, 1),
    "key bias": lambda bias, heads: widen_heads(bias, heads),
}
_HEADS: tuple[Form, ...] = ("head columns", "head column scales")
_BIASES: tuple[Form, ...] = ("query bias", "key bias")
_SMOOTHED: tuple[Form, ...] = ("columns", "column scales", *_HEADS)
_ORIGINALS = (WEIGHTS_FILE, TOKENIZER_FILE)
_MAX_SKELETON_BYTES = 1 << 20
"""A graph has some 100 KB. Larger ones contain weights in a form that is not in the table."""


class _Filling(NamedTuple):
    """What goes into a hole, as in Hole."""

    original: str
    form: Form
    divisors: int = -1


class Hole(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """at: offset in the skeleton's bytes. original: the name of a tensor, or of a file. divisors: index
    of those by which the weight's input channels were multiplied before it was quantised; -1: none."""

    at: int
    original: str
    form: Form
    divisors: int = -1


class Skeleton(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file without its computed parts. holes: in order. packed: the bytes between them, zlib."""

    holes: tuple[Hole, ...]
    packed: bytes


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """originals: the files it applies to. skeletons: by file of the manifest.

    divisors: exponents of powers of two, a byte an input channel; see smoothing.py. heads: of each
    attention layer, if any was widened.
    """

    manifest: Manifest
    originals: tuple[File, ...]
    skeletons: dict[str, Skeleton]
    divisors: tuple[bytes, ...] = ()
    heads: int = 0


def decode_recipe(data: bytes) -> Recipe:
    """Read a recipe of this repository; a test compares it with a build."""
    return msgspec.json.decode(data, type=Recipe)


def encode_recipe(recipe: Recipe) -> bytes:
    """Indented JSON, so that a diff shows changes of the manifest."""
    return msgspec.json.format(msgspec.json.encode(recipe), indent=1) + b"\n"


def write_recipe(
    built: Path,
    manifest: Manifest,
    source: Path,
    divisors: Sequence[NDArray[np.float32]] = (),
    heads: int = 0,
) -> Recipe:
    """The recipe for the files of `manifest`, which are in `built`, from the model's folder `source`.

    divisors: those that layers of an INT8 graph were made with, powers of two of 1 or more. heads: how
    many each of its attention layers has; 0: they are not fused.

    Raises InvalidInput (field "recipe") if the weights are in other files, or in a form that is not in
    the table.
    """
    for name in _ORIGINALS:
        if not (source / name).is_file():
            raise InvalidInput(
                f"a recipe needs {name}, which the model lacks: leave --recipe out", field="recipe"
            )
    originals = _read_originals(source)
    exponents = tuple(np.log2(each).astype(np.uint8).tobytes() for each in divisors)
    forms = _all_forms(originals, exponents, heads)
    skeletons = {}
    for file in manifest.files:
        skeletons[file.name] = skeleton = _take_out((built / file.name).read_bytes(), forms)
        if len(skeleton.packed) > _MAX_SKELETON_BYTES:
            raise InvalidInput(
                f"{file.name} holds weights in a form that recipes do not support: leave --recipe out",
                field="recipe",
            )
    files = tuple(file_of(source / name) for name in _ORIGINALS)
    return Recipe(manifest, files, skeletons, exponents, heads)


def follow_recipe(recipe: Recipe, source: Path, out: Path) -> None:
    """Write the files of the recipe's manifest into `out`. source: the folder of the original.

    Raises InvalidArtefact if an original is not the recipe's, or a file's sha256 differs from the
    build's.
    """
    for expected in recipe.originals:
        path = source / expected.name
        if not path.is_file() or file_of(path) != expected:
            raise InvalidArtefact(f"{expected.name} is not the file that the recipe was written for")
    originals = _read_originals(source)
    for file in recipe.manifest.files:
        content = _fill_in(recipe.skeletons[file.name], originals, recipe)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise InvalidArtefact(
                f"{file.name} differs from the original build: its sha256 does not match"
            )
        (out / file.name).write_bytes(content)


def _read_originals(source: Path) -> Originals:
    tokenizer = np.frombuffer((source / TOKENIZER_FILE).read_bytes(), np.uint8)
    return {**load_file(source / WEIGHTS_FILE), TOKENIZER_FILE: tokenizer}


def _all_forms(
    originals: Originals, divisors: Sequence[bytes], heads: int
) -> list[tuple[_Filling, bytes]]:
    """Every original in every possible form, longest first."""
    fillings = [
        _Filling(name, form)
        for name, tensor in originals.items()
        for form in _FORMS
        if _can_have(tensor, form, heads)
    ]
    fillings += [
        _Filling(name, form, index)
        for index, exponents in enumerate(divisors)
        for name, tensor in originals.items()
        for form in _SMOOTHED
        if _can_have(tensor, form, heads) and tensor.shape[1] == len(exponents)
    ]
    found = [(each, _content_of(each, originals, divisors, heads)) for each in fillings]
    # Constant bytes, such as zeros, match in many places and identify no tensor.
    distinctive = [each for each in found if len(set(each[1])) > 1]
    return sorted(distinctive, key=lambda each: len(each[1]), reverse=True)


def _can_have(tensor: NDArray[Any], form: Form, heads: int) -> bool:
    if form == "same":
        return True
    if tensor.dtype != np.float32:
        return False
    if form == "float16":
        return True
    if tensor.ndim != (1 if form in _BIASES else 2):
        return False
    return form not in (*_HEADS, *_BIASES) or (heads > 0 and len(tensor) % heads == 0)


def _take_out(content: bytes, forms: list[tuple[_Filling, bytes]]) -> Skeleton:
    taken = np.zeros(len(content), bool)
    found: list[tuple[int, int, _Filling]] = []
    for filling, pattern in forms:
        start = content.find(pattern)
        while start >= 0:
            end = start + len(pattern)
            if not taken[start:end].any():
                taken[start:end] = True
                found.append((start, end, filling))
            start = content.find(pattern, end)
    holes, kept, reached = [], bytearray(), 0
    for start, end, filling in sorted(found):
        kept += content[reached:start]
        holes.append(Hole(len(kept), *filling))
        reached = end
    kept += content[reached:]
    return Skeleton(tuple(holes), zlib.compress(bytes(kept), 9))


def _fill_in(skeleton: Skeleton, originals: Originals, recipe: Recipe) -> bytes:
    kept, pieces, reached = zlib.decompress(skeleton.packed), [], 0
    for hole in skeleton.holes:
        filling = _Filling(hole.original, hole.form, hole.divisors)
        content = _content_of(filling, originals, recipe.divisors, recipe.heads)
        pieces += [kept[reached : hole.at], content]
        reached = hole.at
    return b"".join([*pieces, kept[reached:]])


def _content_of(filling: _Filling, originals: Originals, divisors: Sequence[bytes], heads: int) -> bytes:
    """In C order, little-endian, as on all platforms with wheels."""
    tensor = originals[filling.original]
    if filling.divisors >= 0:
        exponents = np.frombuffer(divisors[filling.divisors], np.uint8)
        tensor = tensor * np.exp2(exponents).astype(np.float32)
    return _FORMS[filling.form](tensor, heads).tobytes()
