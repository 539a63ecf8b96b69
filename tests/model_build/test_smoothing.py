"""By what channels are divided, and what that does for an INT8 layer with outliers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from model_build.calibration import calibration_inputs, find_divisors, largest_inputs
from model_build.export import OPSET, export_onnx
from model_build.int8 import quantize_per_row, smoothing_in
from model_build.smoothing import choose_divisors, divisors_of
from model_build.source import inspect_source
from tests.tiny_torch import tiny_cross_encoder, tiny_model


@pytest.mark.parametrize(
    ("largest", "weights", "expected"),
    [
        ([1, 1, 1], [1, 1, 1], [1, 1, 1]),
        ([1, 1, 1, 1, 32], [1, 1, 1, 1, 1], [1, 1, 1, 1, 8]),  # 32 ** 0.6 = 8
        ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1 / 32], [1, 1, 1, 1, 4]),  # 32 ** 0.4 = 4
        ([4, 4, 4, 4, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),  # never multiplied
        ([0, 0], [0, 0], [1, 1]),
    ],
)
def test_divisors_are_powers_of_two_of_the_outliers(
    largest: list[float], weights: list[float], expected: list[float]
) -> None:
    """About 0.6 of an outlier of the input, and 0.4 of what the weights have room for."""
    found = divisors_of(np.array(largest, np.float32), np.array(weights, np.float32))
    assert found.tolist() == expected


def test_layers_that_share_weights_get_the_same_divisors() -> None:
    """As ALBERT's do: the outlier of either input counts, and the weights are stored once."""
    weight = np.ones((8, 4), np.float32)
    nodes = [helper.make_node("MatMul", [x, "w"], [f"{x}y"]) for x in ("a", "b")]
    graph = helper.make_graph(nodes, "test", [], [], [numpy_helper.from_array(weight, "w")])
    low, high = np.ones(8, np.float32), np.array([1, 1, 1, 1, 1, 1, 1, 32], np.float32)
    found = choose_divisors(graph, {"a": low, "b": high})
    assert found["a"].tolist() == found["b"].tolist() == [1, 1, 1, 1, 1, 1, 1, 8]
    assert choose_divisors(graph, {"a": low, "b": low}) == {}


@pytest.mark.parametrize(("before", "most"), [("", 0.3), ("Relu", 0.4), ("Gelu", 0.6)])
def test_outliers_cost_other_channels_nothing(before: str, most: float, tmp_path: Path) -> None:
    """One channel a hundred times the others: divided and not, against the product in FP32.

    With a ReLU or GELU before it, the integers of the sign that it cannot have are used too.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 32)).astype(np.float32)
    x[:, 3] *= 100
    weight = rng.normal(size=(32, 16)).astype(np.float32)
    weight[3] /= 100
    operators = [("x", "hidden")] if before else []
    nodes = [helper.make_node(before, [a], [b], domain=_domain(before)) for a, b in operators]
    nodes.append(helper.make_node("MatMul", ["hidden" if before else "x", "w"], ["y"]))
    path = tmp_path / "fp32.onnx"
    onnx.save(_model(nodes, {"w": weight}), path)
    graph = onnx.load(path).graph
    hidden = np.abs(x if not before else np.maximum(x, 0.17)).max(axis=0)
    divisors = choose_divisors(graph, {"hidden" if before else "x": hidden})
    exact = _run(path, x)
    errors = []
    for chosen in ({}, divisors):
        assert quantize_per_row(path, tmp_path / "int8.onnx", chosen) == 1
        errors.append(float(np.abs(_run(tmp_path / "int8.onnx", x) - exact).mean()))
    assert errors[1] < most * errors[0]
    (read,) = smoothing_in(tmp_path / "int8.onnx")
    (given,) = divisors.values()
    assert read.tolist() == given.tolist()


@pytest.mark.parametrize("before", ["Relu", "Gelu", "BiasGelu", "FastGelu"])
def test_nothing_above_the_least_value_is_clipped(before: str, tmp_path: Path) -> None:
    """Every number that GELU or ReLU can give keeps its place, in rows of small and of large ones."""
    x = np.linspace(-8, 0.5, 64, dtype=np.float32)[None] * np.array([[1.0], [0.1], [20.0]], np.float32)
    constants: dict[str, NDArray[np.float32]] = {"w": np.eye(64, dtype=np.float32)}
    inputs = ["x"]
    if before == "BiasGelu":
        constants["bias"] = np.zeros(64, np.float32)
        inputs.append("bias")
    nodes = [
        helper.make_node(before, inputs, ["hidden"], domain=_domain(before)),
        helper.make_node("MatMul", ["hidden", "w"], ["y"]),
    ]
    onnx.save(_model(nodes, constants), tmp_path / "fp32.onnx")
    quantize_per_row(tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    exact, got = _run(tmp_path / "fp32.onnx", x), _run(tmp_path / "int8.onnx", x)
    steps = np.maximum(exact.max(axis=1, keepdims=True) / 223, 0.1701 / 32)
    assert (np.abs(got - exact) <= 0.51 * steps + 0.01 * np.abs(exact)).all()


@pytest.mark.parametrize("make", [tiny_model, tiny_cross_encoder])
def test_inputs_are_measured_over_texts_of_the_builders_own(make: object, tmp_path: Path) -> None:
    """Of every layer; what a text's embeddings are is not forgotten with the next text."""
    assert callable(make)
    make(tmp_path / "model")
    source = inspect_source(tmp_path / "model")
    graph = tmp_path / "fused.onnx"
    export_onnx(source, graph)
    sequences = calibration_inputs(source)
    assert all(0 < len(each) <= source.max_tokens for each in sequences)
    together = largest_inputs(graph, sequences[:3])
    apart = [largest_inputs(graph, [each]) for each in sequences[:3]]
    for x, value in together.items():
        np.testing.assert_allclose(value, np.max([each[x] for each in apart], axis=0), rtol=1e-5)
    divisors = find_divisors(graph, source)
    assert divisors.keys() <= together.keys()


def _domain(operator: str) -> str:
    return "com.microsoft" if "Gelu" in operator else ""


def _run(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    output: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return output


def _model(nodes: list[onnx.NodeProto], constants: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, 1, ["n", None]) for name in ("x", "y")]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "test", infos[:1], infos[1:], initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
