"""The INT8 graph is exact in its integers, close to FP32, and blind to batch-mates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_build.export import OPSET, export_onnx, optimize_offline
from model_build.int8 import quantize_per_row
from model_build.rounding import quantize_columns
from model_build.source import inspect_source
from shared.contracts import Tokens
from shared.engines.base import pad
from tests.tiny_torch import ENCODERS, PAIRS, SEQUENCES, WORDS, tiny_cross_encoder, tiny_model


def _sessions(folder: Path) -> tuple[ort.InferenceSession, ort.InferenceSession, int]:
    """FP32 and INT8 of the model in folder/model, and how many layers were quantised."""
    export_onnx(inspect_source(folder / "model"), folder / "fused.onnx")
    optimize_offline(folder / "fused.onnx", folder / "fp32.onnx")
    layers = quantize_per_row(folder / "fused.onnx", folder / "rows.onnx")
    optimize_offline(folder / "rows.onnx", folder / "int8.onnx")
    fp32, int8 = (
        ort.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        for name in ("fp32.onnx", "int8.onnx")
    )
    return fp32, int8, layers


def _run(session: ort.InferenceSession, sequences: Sequence[Tokens]) -> NDArray[np.float32]:
    batch = pad(sequences, 1)
    feeds = {each.name: getattr(batch, each.name) for each in session.get_inputs()}
    output: NDArray[np.float32] = session.run(None, feeds)[0]
    return output


@pytest.mark.parametrize("architecture", ENCODERS)
def test_int8_is_close_and_blind_to_batch_mates(architecture: str, tmp_path: Path) -> None:
    """Each text points where FP32's does, and stays the same in another batch; no FP32 table stays."""
    tiny_model(tmp_path / "model", architecture)
    fp32, int8, layers = _sessions(tmp_path)
    assert layers == 12  # Q, K, V, output and two feed-forward, in two layers
    initializers = onnx.load(tmp_path / "int8.onnx").graph.initializer
    tables = [tensor.data_type for tensor in initializers if list(tensor.dims) == [len(WORDS), 32]]
    assert tables == [TensorProto.INT8]
    together, exact = _run(int8, SEQUENCES), _run(fp32, SEQUENCES)
    for row, ids in enumerate(SEQUENCES):
        alone = _run(int8, [ids])[0]
        assert np.abs(alone - together[row, : len(ids)]).max() < 1e-6
        a, b = together[row, : len(ids)].mean(axis=0), exact[row, : len(ids)].mean(axis=0)
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.98


@pytest.mark.parametrize("architecture", ENCODERS)
def test_int8_logits_are_close_and_blind_to_batch_mates(architecture: str, tmp_path: Path) -> None:
    """Of a cross-encoder the head is INT8 too: measured, that costs it no agreement."""
    tiny_cross_encoder(tmp_path / "model", architecture, labels=("a", "b", "c", "d"))
    fp32, int8, layers = _sessions(tmp_path)
    assert layers == 14
    together, exact = _run(int8, PAIRS), _run(fp32, PAIRS)
    assert np.abs(together - exact).max() < 0.1 * np.abs(exact).max()
    alone = np.concatenate([_run(int8, [tokens]) for tokens in PAIRS])
    assert np.abs(alone - together).max() < 1e-6


def test_scales_of_rows_give_the_bits_of_a_division(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QuantizeLinear by blocks of a row is x / scale rounded; a classifier's rows are no tokens'."""
    tiny_cross_encoder(tmp_path / "model", "bert")
    _, by_rows, _ = _sessions(tmp_path)
    nodes = onnx.load(tmp_path / "rows.onnx").graph.node
    assert [n.op_type for n in nodes].count("Div") == 2  # of the pooler's input and the classifier's
    monkeypatch.setattr("model_build.int8.per_token", lambda _: set())
    _, by_division, _ = _sessions(tmp_path)
    np.testing.assert_array_equal(_run(by_rows, PAIRS), _run(by_division, PAIRS))


@pytest.mark.parametrize("rows", [1, 2, 7, 384])
def test_pairs_of_weights_never_saturate_int16(rows: int) -> None:
    """With 255 as every activation, no adjacent pair of products leaves int16."""
    rng = np.random.default_rng(rows)
    cases = [
        rng.normal(size=(rows, 33)),
        np.ones((rows, 5)),
        -np.ones((rows, 5)),
        rng.choice([-1.0, 1.0, 0.5, 0.0], size=(rows, 64)),
        np.zeros((rows, 3)),
    ]
    for weight in cases:
        quantized, scale = quantize_columns(weight.astype(np.float32))
        assert np.abs(quantized * scale - weight).max() <= scale.max() / 2 + 1e-6
        padded = np.pad(quantized.astype(np.int64), ((0, rows % 2), (0, 0)))
        for extreme in (np.maximum(padded, 0), np.minimum(padded, 0)):
            pairs = 255 * extreme.reshape(-1, 2, weight.shape[1]).sum(axis=1)
            assert pairs.min() >= -32768
            assert pairs.max() <= 32767


@pytest.mark.parametrize("rows", [7, 384])
def test_integer_products_are_exact_at_the_extremes(rows: int) -> None:
    """MatMulIntegerToFloat on activations of 255 gives what 64-bit integers give."""
    rng = np.random.default_rng(0)
    weight = np.abs(rng.normal(size=(rows, 32))).astype(np.float32) * rng.choice([-1, 1], size=32)
    quantized, _ = quantize_columns(weight.astype(np.float32))
    inputs = ["x", "w", "one", "one", "zero_point", "w_zero"]
    node = helper.make_node("MatMulIntegerToFloat", inputs, ["y"], domain="com.microsoft")
    constants: dict[str, NDArray[Any]] = {
        "w": quantized,
        "one": np.asarray(1, np.float32),
        "zero_point": np.asarray(128, np.uint8),
        "w_zero": np.asarray(0, np.int8),
    }
    session = ort.InferenceSession(
        _model(
            [node],
            constants,
            [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", rows])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        ).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    for x in (np.full((3, rows), 255), np.zeros((3, rows)), rng.choice([0, 255], size=(3, rows))):
        expected = (x.astype(np.int64) - 128) @ quantized.astype(np.int64)
        got = session.run(None, {"x": x.astype(np.uint8)})[0]
        np.testing.assert_array_equal(got.astype(np.int64), expected)


def test_gemm_and_odd_widths_are_quantised_and_other_products_left(tmp_path: Path) -> None:
    """A Gemm keeps its bias and its transposition; a constant that is no matrix stays FP32."""
    rng = np.random.default_rng(1)
    constants: dict[str, NDArray[Any]] = {
        "w1": rng.normal(size=(7, 9)).astype(np.float32),
        "w2": rng.normal(size=(5, 9)).astype(np.float32),
        "bias": rng.normal(size=5).astype(np.float32),
        "w3": rng.normal(size=(1, 5, 4)).astype(np.float32),
        "shape": np.array([1, -1, 5], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Gemm", ["a", "w2", "bias"], ["b"], transB=1),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("MatMul", ["c", "w3"], ["y"]),
    ]
    model = _model(
        nodes,
        constants,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "n", 4])],
    )
    onnx.save(model, tmp_path / "fp32.onnx")
    assert quantize_per_row(tmp_path / "fp32.onnx", tmp_path / "int8.onnx") == 2
    kept = {i.name for i in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert "w3" in kept
    assert not kept & {"w1", "w2"}
    x = rng.normal(size=(6, 7)).astype(np.float32)
    x[2] = 0  # a row of zeros has no scale of its own
    expected, got = (
        ort.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in ("fp32.onnx", "int8.onnx")
    )
    assert np.abs(got - expected).max() < 0.03 * np.abs(expected).max()


def _model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
