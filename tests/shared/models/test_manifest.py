from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shared.cards import TextMemory
from shared.errors import InvalidArtefact, InvalidInput
from shared.models.manifest import (
    File,
    LayerFile,
    ModelRoute,
    decode_manifest,
    decode_pointer,
    encode_manifest,
    encode_pointer,
)
from shared.names import check_name
from tests.tiny import manifest_of

MANIFEST = manifest_of(
    "m", files=(File("model.onnx", 10, "00"), File("tokenizer.json", 5, "11")), prompts={}
)
MODEL = {"name": "model.onnx", "size": 10, "sha256": "00"}
TOKENIZER = {"name": "tokenizer.json", "size": 5, "sha256": "11"}


def test_a_manifest_survives_writing_and_reading() -> None:
    """What the builder wrote is what the server reads."""
    assert decode_manifest(encode_manifest(MANIFEST)) == MANIFEST
    assert MANIFEST.size == 15
    assert MANIFEST.device == "cpu"


def test_a_manifest_of_before_memory_was_measured_is_read() -> None:
    """What is not known is assumed: on a CPU not too little, on a GPU nothing that would end it."""
    old = {**msgspec.json.decode(encode_manifest(MANIFEST))}
    del old["memory"]
    manifest = decode_manifest(msgspec.json.encode(old))
    assert manifest == MANIFEST
    assert manifest.text_memory.bytes_of(1000) == 65_536_000 + 256_000_000
    assert msgspec.structs.replace(MANIFEST, target="gpu-fp16").text_memory.bytes_of(10**6) == 0


def test_a_manifest_of_before_int8_was_calibrated_is_read() -> None:
    """Its int8 answers stay what they were: 127 is 1."""
    old = {**msgspec.json.decode(encode_manifest(MANIFEST))}
    del old["int8_ranges"]
    manifest = decode_manifest(msgspec.json.encode(old))
    assert (manifest.int8_range(), manifest.int8_range(64)) == (1, 1)


@pytest.mark.parametrize(
    ("dimensions", "expected"),
    [(None, 0.2), (384, 0.2), (383, 0.3), (192, 0.3), (191, 0.5), (24, 0.5), (23, 1), (1, 1)],
)
def test_int8_has_the_range_of_the_next_shorter_calibrated_length(
    dimensions: int | None, expected: float
) -> None:
    """Numbers of longer vectors are smaller, so nothing of those in between is clipped."""
    ranges = {384: 0.2, 192: 0.3, 24: 0.5}
    manifest = msgspec.structs.replace(MANIFEST, dimensions=384, int8_ranges=ranges)
    read = decode_manifest(encode_manifest(manifest))
    assert read.int8_range(dimensions) == expected


def test_a_manifest_of_several_poolings_and_layers_is_read_as_written() -> None:
    """In JSON the layers are "dense", and a plain one is what it was before there were others."""
    dense = LayerFile("d.safetensors", "gelu")
    layers = (dense, LayerFile("", "identity", "unit"), LayerFile("n.safetensors", "identity", "norm"))
    more = (File("d.safetensors", 1, "22"), File("n.safetensors", 1, "33"))
    manifest = msgspec.structs.replace(
        MANIFEST, pooling=("mean", "cls"), layers=layers, files=(*MANIFEST.files, *more)
    )
    assert decode_manifest(encode_manifest(manifest)) == manifest
    written = msgspec.to_builtins(manifest)
    assert (written["pooling"], "layers" in written) == (("mean", "cls"), False)
    assert written["dense"][0] == {"file": "d.safetensors", "activation": "gelu"}


ROUTE = ModelRoute(
    target="cpu-static",
    architecture="StaticEmbedding",
    model_file="query.model.safetensors",
    tokenizer_file="query.tokenizer.json",
    pad_token_id=0,
    max_tokens=8,
    pooling="mean",
)
ROUTED = msgspec.structs.replace(
    MANIFEST,
    routes={"query": ROUTE},
    files=(*MANIFEST.files, File(ROUTE.model_file, 1, "22"), File(ROUTE.tokenizer_file, 1, "33")),
)


def test_a_route_has_what_it_has_of_its_own() -> None:
    """The rest is the model's; another name is the model itself; without routes nothing is written."""
    assert decode_manifest(encode_manifest(ROUTED)) == ROUTED
    query = ROUTED.of_route("query")
    assert (query.model_file, query.max_tokens, query.target) == (
        "query.model.safetensors",
        8,
        "cpu-static",
    )
    assert (query.name, query.dimensions, bool(query.routes)) == ("m", MANIFEST.dimensions, False)
    assert ROUTED.of_route("document") == msgspec.structs.replace(MANIFEST, files=ROUTED.files)
    assert b"routes" not in encode_manifest(MANIFEST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": MANIFEST.files}, "does not list query.model.safetensors, query.tokenizer.json"),
        ({"routes": {"query": msgspec.structs.replace(ROUTE, max_tokens=0)}}, "0 as max_tokens"),
        ({"routes": {"image": ROUTE}}, "Invalid enum value 'image'"),
        (
            {"task": "cross-encoder", "pooling": None, "labels": ("x", "y")},
            "a cross-encoder model has no routes",
        ),
    ],
)
def test_a_route_that_cannot_be_served_is_refused(change: dict[str, Any], message: str) -> None:
    """As the manifest itself would be."""
    with pytest.raises(InvalidArtefact, match=message):
        decode_manifest(encode_manifest(msgspec.structs.replace(ROUTED, **change)))


@pytest.mark.parametrize(
    ("per_token", "per_pair", "memory_bytes", "tokens"),
    [
        (10.0, 1.0, 200, 10),
        (10.0, 1.0, 199, 9),
        (10.0, 0.0, 99, 9),
        (0.0, 4.0, 400, 10),
        (1.0, 1.0, 1, 0),
    ],
)
def test_memory_says_how_long_a_text_may_be(
    per_token: float, per_pair: float, memory_bytes: int, tokens: int
) -> None:
    """By hand: ten tokens of ten bytes each, and a byte for each of a hundred pairs, are 200."""
    memory = TextMemory(per_token, per_pair)
    assert memory.tokens_within(memory_bytes) == tokens
    assert memory.bytes_of(tokens) <= memory_bytes < memory.bytes_of(tokens + 1)


def test_a_survives_writing_and_reading_with_memory() -> None:
    """As it was measured."""
    measured = msgspec.structs.replace(MANIFEST, memory=TextMemory(1.5, 2.5))
    assert decode_manifest(encode_manifest(measured)).text_memory == TextMemory(1.5, 2.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema 2"),
        ({"pooling": "median"}, r"\$.pooling"),
        ({"surprise": 1}, "surprise"),
        ({"memory": {"per_token": -1, "per_pair": 0}}, r"\$.memory.per_token"),
        ({"memory": {"per_token": 1e300, "per_pair": 0}}, r"\$.memory.per_token"),
        ({"model_file": "other.onnx"}, "does not list other.onnx"),
        ({"files": [{"name": "../x", "size": 1, "sha256": ""}]}, "file name"),
        ({"files": [{"name": "manifest.json", "size": 1, "sha256": ""}]}, "among its artefacts"),
        ({"pooling": None}, "needs a pooling"),
        ({"pooling": []}, "needs a pooling"),
        ({"pooling": ["mean"] * 9}, "9 as the number of poolings; it must be 0 to 8"),
        ({"dense": [{"file": "d", "activation": "identity", "kind": "norm"}]}, "does not list d"),
        ({"dense": [{"file": "", "activation": "identity"}]}, "does not list "),
        ({"dense": [{"file": "d", "activation": "identity", "kind": "code"}]}, r"\$\.dense\[0\]\.kind"),
        ({"labels": ["LABEL_0"]}, "one label per logit"),
        ({"task": "cross-encoder", "pooling": None, "dimensions": 1}, "one label per logit"),
        ({"files": [MODEL, TOKENIZER, MODEL | {"size": 1}]}, "a file twice"),
        # A negative size would make room for others in a sum.
        ({"files": [MODEL, TOKENIZER, {"name": "x", "size": -1, "sha256": ""}]}, "-1 as a file's size"),
        ({"files": [MODEL | {"size": 1 << 60}, TOKENIZER]}, "1152921504606846976 as a file"),
        ({"files": [MODEL, TOKENIZER | {"size": 1 << 30}]}, "1073741824 as the tokenizer's size"),
        ({"pad_token_id": -1}, "-1 as pad_token_id"),
        ({"pad_token_id": 1 << 40}, "1099511627776 as pad_token_id"),
        ({"max_tokens": 0}, "0 as max_tokens; it must be 1 to 1048576"),
        ({"max_tokens": 10**12}, "1000000000000 as max_tokens"),
        ({"dimensions": 0}, "0 as dimensions"),
        ({"int8_ranges": {"8": 0.0}}, "0.0 as an int8 range; it must be 0.001 to 1"),
        ({"int8_ranges": {"8": 0.5, "4": 1e9}}, "1000000000.0 as an int8 range"),
        ({"int8_ranges": {str(n): 0.5 for n in range(1_001)}}, "1001 as the number of int8 ranges"),
        ({"dimensions": 1 << 30}, "1073741824 as dimensions"),
        (
            {"prompts": {f"p{n}": "" for n in range(1_001)}},
            "1001 as the number of prompts",
        ),
        ({"labels": ["x"] * 1_001}, "1001 as the number of labels"),
    ],
)
def test_a_manifest_that_is_not_right_is_refused(change: dict[str, object], message: str) -> None:
    """Unknown fields, newer schemas, missing files and paths all stop the load."""
    content = msgspec.to_builtins(MANIFEST) | change
    with pytest.raises(InvalidArtefact, match=message):
        decode_manifest(msgspec.json.encode(content))


def test_the_pointer_holds_a_revision_per_device() -> None:
    """Publishing for one device leaves the other's revision alone."""
    assert encode_pointer({"gpu": "b", "cpu": "a"}) == b'{"cpu":"a","gpu":"b"}\n'
    assert decode_pointer(b'{"cpu":"a"}') == {"cpu": "a"}
    with pytest.raises(InvalidArtefact):
        decode_pointer(b'{"tpu":"a"}')


@pytest.mark.parametrize(
    "name", ["", "..", "../m", "a/b", "a\\b", ".m", "m.", "m\n", "a%2fb", "ä", "x" * 129]
)
def test_names_that_could_leave_the_store_are_refused(name: str) -> None:
    """No separator, no dot at an end, no odd character."""
    with pytest.raises(InvalidInput):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "all-MiniLM-L6-v2", "e5_small.v2", "x" * 128])
def test_usual_names_pass(name: str) -> None:
    """Names come back unchanged."""
    assert check_name(name) == name
