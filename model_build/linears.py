"""Finds the linear layers of an FP32 graph: products with a constant matrix.

It does not know quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

# Operators that keep rows as they are, or broadcast what has fewer dimensions along them.
_ROW_BY_ROW = {
    *("Add", "Div", "Mul", "Sub", "Cast", "LayerNormalization"),
    *("BiasGelu", "Erf", "FastGelu", "Gelu", "QuickGelu", "Relu", "Sigmoid", "Tanh"),
}


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x @ weight (+ bias); x @ weight.T if transposed. Fields are tensor names; no bias: ""."""

    x: str
    weight: str
    y: str
    transposed: bool = False
    bias: str = ""


def matrices(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Name -> tensor, of the graph's constant float32 matrices."""
    return {
        each.name: each
        for each in graph.initializer
        if len(each.dims) == 2 and each.data_type == TensorProto.FLOAT
    }


def linear_of(node: NodeProto, constants: Mapping[str, TensorProto]) -> Linear | None:
    """The node as a linear layer; None if it is not one. constants: from `matrices`."""
    if node.op_type == "MatMul" and node.input[1] in constants:
        return Linear(node.input[0], node.input[1], node.output[0])
    if node.op_type == "Gemm" and node.input[1] in constants and _is_plain(node):
        bias = node.input[2] if len(node.input) > 2 else ""
        transposed = _attributes(node).get("transB") == 1
        return Linear(node.input[0], node.input[1], node.output[0], transposed, bias)
    return None


def linears(graph: onnx.GraphProto) -> list[Linear]:
    """All linear layers, in the graph's order."""
    constants = matrices(graph)
    found = (linear_of(node, constants) for node in graph.node)
    return [layer for layer in found if layer is not None]


def weight_of(layer: Linear, constants: Mapping[str, TensorProto]) -> NDArray[np.float32]:
    """(K, N) float32: one row per input channel, one column per output channel."""
    matrix: NDArray[np.float32] = numpy_helper.to_array(constants[layer.weight])
    return matrix.T if layer.transposed else matrix


def per_token(graph: onnx.GraphProto) -> set[str]:
    """Names of tensors that are known to be (B, T, K), one row per token; there may be more."""
    found: set[str] = set()
    for node in graph.node:
        if (
            _looks_up_tokens(node)
            or node.op_type == "MultiHeadAttention"
            or (node.op_type == "MatMul" and node.input[0] in found)
            or (node.op_type in _ROW_BY_ROW and found.intersection(node.input))
        ):
            found.add(node.output[0])
    return found


def _looks_up_tokens(node: NodeProto) -> bool:
    return (
        node.op_type == "Gather" and node.input[1] == "input_ids" and not _attributes(node).get("axis")
    )


def _attributes(node: NodeProto) -> dict[str, object]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _is_plain(node: NodeProto) -> bool:
    """Whether a Gemm is x @ W + b, without scaling or transposing x."""
    attributes = _attributes(node)
    return (
        attributes.get("alpha", 1.0) == 1.0
        and attributes.get("beta", 1.0) == 1.0
        and not attributes.get("transA", 0)
    )
