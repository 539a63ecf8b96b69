"""Recipes of made-up files whose layout is known, written and followed."""

from __future__ import annotations

import hashlib
import random
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from model_build.recipe import Hole, Recipe, decode_recipe, encode_recipe, follow_recipe, write_recipe
from shared.errors import InvalidArtefact, InvalidInput
from shared.models.manifest import File, Manifest, Source

TABLE = np.array([[0.5, -1.27], [2.54, 0.02]], np.float32)
"""Rows of 127 and 254 hundredths: scales of 0.01 and 0.02, which give the integers below."""
LAYER = np.array([[1.0, 0.25], [-0.5, 1.27], [0.1, 0.2]], np.float32)
BIAS = np.array([1.5, -2.5], np.float32)
HALF = np.array([1.5, -2.5], np.float16)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What a model's folder holds that a recipe needs."""
    folder = tmp_path / "source"
    folder.mkdir()
    save_file({"table": TABLE, "layer": LAYER, "bias": BIAS}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text('{"a tokenizer": 1}')
    return folder


def built(tmp_path: Path, files: dict[str, bytes]) -> tuple[Path, Manifest]:
    """A folder as a build leaves it, and its manifest."""
    folder = tmp_path / "built"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    listed = tuple(
        File(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()
    )
    manifest = Manifest(
        schema_version=1,
        name="m",
        revision="r",
        task="embedding",
        target="cpu-int8",
        architecture="BertModel",
        source=Source("m", "1"),
        files=listed,
        model_file="model.onnx",
        tokenizer_file="tokenizer.json",
        pad_token_id=0,
        max_tokens=8,
        dimensions=2,
        pooling="mean",
    )
    return folder, manifest


def holes(recipe: Recipe, name: str = "model.onnx") -> list[Hole]:
    return list(recipe.skeletons[name].holes)


def kept(recipe: Recipe, name: str = "model.onnx") -> bytes:
    return zlib.decompress(recipe.skeletons[name].packed)


def test_what_is_computed_from_the_originals_is_taken_out(source: Path, tmp_path: Path) -> None:
    """Every form, by hand: the rest is kept as it is, and the file comes out as it was."""
    rows = np.array([[50, -127], [127, 1]], np.int8)
    row_scales = np.abs(TABLE).max(axis=1) / np.float32(127)
    # A column's scale is its largest weight's, or its largest pair's of one sign, by 127.
    column_scales = np.array([1.25, 1.27, np.float32(0.1) + np.float32(0.2)], np.float32) / np.float32(
        127
    )
    columns = np.rint(LAYER.T / column_scales).astype(np.int8)
    parts = [b"<rows>", rows, row_scales, b"<columns>", columns, column_scales, b"<half>", HALF]
    parts += [b"<bias>", BIAS, BIAS, b"<end>"]
    content = b"".join(part if isinstance(part, bytes) else part.tobytes() for part in parts)
    folder, manifest = built(tmp_path, {"model.onnx": content, "tokenizer.json": b'{"a tokenizer": 1}'})
    recipe = write_recipe(folder, manifest, source)
    assert holes(recipe) == [
        Hole(6, "table", "rows"),
        Hole(6, "table", "row scales"),
        Hole(15, "layer", "columns"),
        Hole(15, "layer", "column scales"),
        Hole(21, "bias", "float16"),
        Hole(27, "bias", "same"),
        Hole(27, "bias", "same"),
    ]
    assert kept(recipe) == b"<rows><columns><half><bias><end>"
    assert holes(recipe, "tokenizer.json") == [Hole(0, "tokenizer.json", "same")]
    out = tmp_path / "out"
    out.mkdir()
    follow_recipe(decode_recipe(encode_recipe(recipe)), source, out)
    assert (out / "model.onnx").read_bytes() == content
    assert {path.name for path in out.iterdir()} == {"model.onnx", "tokenizer.json"}


def test_a_smoothed_layer_is_taken_out_with_its_divisors(source: Path, tmp_path: Path) -> None:
    """The second input channel's were multiplied by 4: 0.25 became 1, 1.27 5.08 and 0.2 0.8."""
    smoothed = np.array([[1.0, 1.0], [-0.5, 5.08], [0.1, 0.8]], np.float32).T
    column_scales = np.array([2.0, 5.08, np.float32(0.1) + np.float32(0.8)], np.float32) / np.float32(
        127
    )
    columns = np.rint(smoothed / column_scales).astype(np.int8)
    content = b"<w>" + columns.tobytes() + b"<s>" + column_scales.tobytes()
    folder, manifest = built(tmp_path, {"model.onnx": content})
    recipe = write_recipe(folder, manifest, source, [np.array([1, 4], np.float32)])
    assert recipe.divisors == (b"\x00\x02",)
    assert holes(recipe) == [Hole(3, "layer", "columns", 0), Hole(6, "layer", "column scales", 0)]
    assert kept(recipe) == b"<w><s>"
    out = tmp_path / "out"
    out.mkdir()
    follow_recipe(decode_recipe(encode_recipe(recipe)), source, out)
    assert (out / "model.onnx").read_bytes() == content


def test_widened_heads_are_taken_out(tmp_path: Path) -> None:
    """Two heads of one coordinate get a second: of a weight 0, of a query's bias 1, of a key's 0."""
    originals = tmp_path / "source"
    originals.mkdir()
    weight = np.array([[1.0, 0.25], [-0.5, 1.27]], np.float32)
    query, key = np.array([1.5, -2.5], np.float32), np.array([3.5, 4.5], np.float32)
    save_file({"weight": weight, "query": query, "key": key}, originals / "model.safetensors")
    (originals / "tokenizer.json").write_text("{}")
    scales = np.array([1.25, 0, 1.27, 0], np.float32) / np.float32(127)
    columns = np.array([[102, 0, -50, 0], [25, 0, 127, 0]], np.int8)
    scales[[1, 3]] = np.float32(1e-12)
    content = b"<w>" + columns.tobytes() + b"<s>" + scales.tobytes() + b"<b>"
    content += np.array([1.5, 1, -2.5, 1, 3.5, 0, 4.5, 0], np.float32).tobytes()
    folder, manifest = built(tmp_path, {"model.onnx": content})
    recipe = write_recipe(folder, manifest, originals, heads=2)
    assert holes(recipe) == [
        Hole(3, "weight", "head columns"),
        Hole(6, "weight", "head column scales"),
        Hole(9, "query", "query bias"),
        Hole(9, "key", "key bias"),
    ]
    assert kept(recipe) == b"<w><s><b>"
    out = tmp_path / "out"
    out.mkdir()
    follow_recipe(decode_recipe(encode_recipe(recipe)), originals, out)
    assert (out / "model.onnx").read_bytes() == content


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["another", "cut", "gone"])
def test_other_originals_are_refused(source: Path, tmp_path: Path, name: str, damage: str) -> None:
    """Before anything is computed from them, and nothing is left."""
    folder, manifest = built(tmp_path, {"model.onnx": BIAS.tobytes()})
    recipe = write_recipe(folder, manifest, source)
    path, content = source / name, (source / name).read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + b"?" if damage == "another" else content[:-1])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InvalidArtefact, match=f"^{name} is not the file"):
        follow_recipe(recipe, source, out)
    assert not list(out.iterdir())


def test_a_file_that_turns_out_otherwise_is_refused(source: Path, tmp_path: Path) -> None:
    """As when the rounding changes and the recipe does not: the sha256 of the build is the judge."""
    folder, manifest = built(tmp_path, {"model.onnx": b"<bias>" + BIAS.tobytes()})
    recipe = write_recipe(folder, manifest, source)
    (hole,) = holes(recipe)
    other = msgspec.structs.replace(
        recipe.skeletons["model.onnx"], holes=(msgspec.structs.replace(hole, form="float16"),)
    )
    out = tmp_path / "out"
    out.mkdir()
    changed = msgspec.structs.replace(recipe, skeletons={"model.onnx": other})
    with pytest.raises(InvalidArtefact, match=r"^model\.onnx differs from the original build"):
        follow_recipe(changed, source, out)
    assert not list(out.iterdir())


def test_weights_in_no_known_form_make_no_recipe(source: Path, tmp_path: Path) -> None:
    """A recipe that holds the weights would be as large as they are."""
    folder, manifest = built(tmp_path, {"model.onnx": random.Random(0).randbytes(2 << 20)})
    with pytest.raises(InvalidInput, match=r"^model\.onnx holds weights"):
        write_recipe(folder, manifest, source)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_no_recipe_without_the_originals(source: Path, tmp_path: Path, name: str) -> None:
    """As of sharded weights, or of a tokenizer that was converted."""
    folder, manifest = built(tmp_path, {"model.onnx": BIAS.tobytes()})
    (source / name).unlink()
    with pytest.raises(InvalidInput, match=f"a recipe needs {name}"):
        write_recipe(folder, manifest, source)
