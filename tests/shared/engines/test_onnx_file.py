"""An ONNX file without its large weights, as the onnx library reads it and as onnxruntime runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from shared.engines.onnx import open_session
from shared.engines.onnx_file import LARGE_BYTES, graph_of

ROWS, WIDTH = 300, 16
RANDOM = np.random.default_rng(0)


def table(kind: type[np.generic], rows: int = ROWS) -> TensorProto:
    values = RANDOM.integers(0, 100, (rows, WIDTH)).astype(kind)
    return numpy_helper.from_array(values, "table")


def in_numbers() -> TensorProto:
    """8-bit weights as a list of integers, which onnx allows beside bytes."""
    return helper.make_tensor(
        "table", TensorProto.INT8, (ROWS, WIDTH), RANDOM.integers(0, 9, ROWS * WIDTH)
    )


def elsewhere() -> TensorProto:
    tensor = table(np.int8)
    onnx.external_data_helper.set_external_data(tensor, "other.data")
    tensor.ClearField("raw_data")
    return tensor


def model_of(weights: TensorProto) -> ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("Cast", ["rows"], ["numbers"], to=TensorProto.FLOAT),
        ],
        "graph",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["T"])],
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["T", WIDTH])],
        [weights],
        doc_string="behind the weights",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"attention_short_tokens": "384"})
    return model


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_large_8_bit_weights_are_told_by_their_place(kind: type[np.generic]) -> None:
    """Everything else is as it was, and the bytes at that place are the weights'."""
    model = model_of(table(kind))
    file = model.SerializeToString()
    smaller = onnx.load_model_from_string(graph_of(file, "model.onnx") or b"")
    (tensor,) = smaller.graph.initializer
    assert tensor.data_location == TensorProto.EXTERNAL
    place = {entry.key: entry.value for entry in tensor.external_data}
    assert place["location"] == "model.onnx"
    start, length = int(place["offset"]), int(place["length"])
    assert length == ROWS * WIDTH
    weights = model.graph.initializer[0]
    assert file[start : start + length] == weights.raw_data
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = weights.raw_data
    assert smaller == model


@pytest.mark.parametrize(
    "weights",
    [
        table(np.float32),  # would not lie where a processor wants it
        table(np.int8, rows=LARGE_BYTES // WIDTH - 10),
        in_numbers(),
        elsewhere(),
    ],
    ids=["of four bytes", "small", "as numbers", "outside already"],
)
def test_other_weights_stay(weights: TensorProto) -> None:
    """Then onnxruntime reads the file, of which nobody makes a copy."""
    file = model_of(weights).SerializeToString()
    assert graph_of(file, "model.onnx") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file[:-100],
        lambda file: b"\xff" * 20,
        lambda file: b"\x3a\x7f" + file,
        lambda file: b"\x3b" + file,
    ],
    ids=["cut off", "an endless number", "a field beyond the end", "an unknown kind"],
)
def test_what_is_no_message_is_refused(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(ValueError, match=r"^a (field|number)"):
        graph_of(damage(model_of(table(np.int8)).SerializeToString()), "model.onnx")


def test_a_session_maps_the_weights_from_the_file(tmp_path: Path) -> None:
    """And its numbers are those of a session that onnxruntime opens by itself, behind a link too."""
    path, link = tmp_path / "model.onnx", tmp_path / "other" / "linked.onnx"
    onnx.save(model_of(table(np.int8)), path)
    link.parent.mkdir()
    link.symlink_to(path)
    ids = np.array([0, 299, 7], np.int64)
    (expected,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"ids": ids})
    for each in (path, link):
        session = open_session(each)
        (numbers,) = session.run(None, {"ids": ids})
        assert numbers.tobytes() == expected.tobytes()
        assert session.get_modelmeta().custom_metadata_map == {"attention_short_tokens": "384"}
        if sys.platform == "linux":
            assert str(path) in Path("/proc/self/maps").read_text()
        del session
