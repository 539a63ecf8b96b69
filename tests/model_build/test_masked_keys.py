"""Attention that is told of padding by its keys is the attention that is given a mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from model_build.masked_keys import heads_in, mask_keys

HEADS, SIZE, WIDTH = 3, 4, 12
MASK = np.array([[1] * 7, [1] * 5 + [0] * 2, [1] + [0] * 6], np.int64)
LENGTHS = MASK.sum(axis=1)


def attention(weights: float = 1.0, change: dict[str, str] | None = None) -> onnx.ModelProto:
    """x -> Q, K, V -> attention twice with the same weights. change: input of the second -> its name."""
    random = np.random.default_rng(0)
    constants = {
        "q": random.standard_normal((WIDTH, WIDTH)) * weights,
        "k": random.standard_normal((WIDTH, WIDTH)) * weights,
        "v": random.standard_normal((WIDTH, 18)),  # values may be wider than keys
        "back": random.standard_normal((18, WIDTH)) / 8,
        "bias": random.standard_normal(2 * WIDTH + 18) * weights,
        "scores": random.standard_normal((1, HEADS, 7, 7)),
    }
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask32"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["mask32", "axis"], ["lengths"], keepdims=0),
        *layer("x", "y1", {}),
        *layer("y1", "y", change or {}),
    ]
    initializers = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()]
    initializers.append(numpy_helper.from_array(np.array([1]), "axis"))
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", WIDTH]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["b", "s"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "s", WIDTH])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def layer(x: str, y: str, change: dict[str, str]) -> list[NodeProto]:
    q, k, v, mixed = (f"{y}_{part}" for part in ("q", "k", "v", "mixed"))
    inputs = {"query": q, "key": k, "value": v, "bias": "bias", "mask": "lengths"} | change
    return [
        *(helper.make_node("MatMul", [x, w], [out]) for w, out in (("q", q), ("k", k), ("v", v))),
        helper.make_node(
            "MultiHeadAttention", list(inputs.values()), [mixed], domain="com.microsoft", num_heads=HEADS
        ),
        helper.make_node("MatMul", [mixed, "back"], [y]),
    ]


def run(model: Path, x: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    y: NDArray[np.float32] = session.run(None, {"x": x, "attention_mask": mask})[0]
    return y


def in_float64(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """One text without padding, by hand."""
    w = {each.name: numpy_helper.to_array(each).astype(np.float64) for each in model.graph.initializer}
    y = x.astype(np.float64)
    bias = np.split(w["bias"], [WIDTH, 2 * WIDTH])
    for _ in range(2):
        q, k, v = (
            (y @ w[name] + b).reshape(len(x), HEADS, -1).swapaxes(0, 1)
            for name, b in zip("qkv", bias, strict=True)
        )
        scores = q @ k.swapaxes(1, 2) / SIZE**0.5
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y = (shares / shares.sum(axis=-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(x), -1)
        y = y @ w["back"]
    return y


@pytest.mark.parametrize("weights", [0.1, 1.0, 30.0])
def test_real_tokens_attend_to_real_tokens_alone(weights: float, tmp_path: Path) -> None:
    """With even attention, and with scores in the thousands, beside which a small mask would be seen."""
    model = tmp_path / "model.onnx"
    original = attention(weights)
    masked = attention(weights)
    assert mask_keys(masked) == 2
    onnx.save(masked, model)
    x = np.random.default_rng(1).standard_normal((3, 7, WIDTH), np.float32)
    layers = [node for node in masked.graph.node if node.op_type == "MultiHeadAttention"]
    assert [list(node.input)[3:] for node in layers] == [["bias"], ["bias"]]
    assert heads_in(model) == HEADS
    together = run(model, x, MASK)
    for row, length in enumerate(LENGTHS):
        expected = in_float64(original, x[row, :length])
        np.testing.assert_allclose(together[row, :length], expected, atol=3e-3 if weights > 1 else 1e-5)
        alone = run(model, x[row : row + 1, :length], MASK[row : row + 1, :length])
        np.testing.assert_array_equal(alone[0], together[row, :length])


def test_what_computed_the_mask_is_gone() -> None:
    """Nothing that is not read is run, and no width is that of the scores."""
    model = attention()
    mask_keys(model)
    graph = model.graph
    assert "ReduceSum" not in {node.op_type for node in graph.node}
    assert "axis" not in {each.name for each in graph.initializer}
    widened = {each.name: list(each.dims) for each in graph.initializer if each.name in "qkv"}
    assert widened == {"q": [12, 15], "k": [12, 15], "v": [12, 18]}


@pytest.mark.parametrize(
    "change",
    [{"query": "y1"}, {"key": "y1"}, {"bias": ""}, {"more": "scores"}],
    ids=["a query that is no product", "a key that is none", "no bias", "a bias of scores"],
)
def test_other_attention_keeps_its_mask(change: dict[str, str]) -> None:
    """As of rotated queries, or MPNet's positions. Layers that share weights are left too."""
    model = attention(change=change)
    assert mask_keys(model) == 0
    assert model == attention(change=change)
