"""Masks padding by a coordinate of the keys, so that attention itself needs no mask.

It does not know architectures, quantisation or how graphs run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from model_build.graphs import load_graph
from model_build.heads import widen_heads
from model_build.linears import matrices

ATTENTION = "MultiHeadAttention"
_PADDED = -1e30
"""Score of a padded key. It is far below every real one, and far from infinite."""
_MASK = "key_mask"
_INPUTS = 5
"""Query, key, value, bias and the padding's mask; later ones add scores or past keys."""


def mask_keys(model: onnx.ModelProto) -> int:
    """Rewrite a fused FP32 graph in place; how many attention layers no longer take a mask.

    ONNX Runtime's attention works in tiles when it is given no mask: memory then grows with the number
    of tokens and not with its square, and time falls. So each head gets one coordinate more: 1 in every
    query, 0 in a real token's key, and a large negative number in a padding's. Real tokens' scores are
    unchanged. The zero columns are in the weights of Q and K, the 1 is in the bias of Q, and one
    addition a layer puts the mask into the keys. Values, and the scale of scores, stay as they were.

    A graph in which a layer's queries or keys are not products with a constant, or its scores have a
    bias, keeps its masks: layers may share weights.
    """
    layers = [node for node in model.graph.node if node.op_type == ATTENTION]
    writer = _Writer(model.graph)
    if not layers or not all(writer.can_rewrite(node) for node in layers):
        return 0
    for node in layers:
        writer.rewrite(node)
    writer.finish()
    return len(layers)


def tile_rows(graph: onnx.GraphProto) -> int:
    """How many queries a tile of attention without a mask has; 0: the graph has none.

    ONNX Runtime takes as many as a query's and a value's coordinates together, where the L2 cache holds
    four times the square of that in floats: 270 kB for heads of 64.
    """
    constants = matrices(graph)
    for node in graph.node:
        if node.op_type == ATTENTION and len(node.input) < _INPUTS:
            width = _width(graph, node.output[0], constants)
            return 2 * width // _heads(node) + 1
    return 0


def heads_in(path: Path) -> int:
    """How many heads the attention layers of a written graph have; 0: none is fused."""
    return next((_heads(node) for node in load_graph(path).graph.node if node.op_type == ATTENTION), 0)


class _Writer:
    """Widens queries and keys of one graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants = {each.name: each for each in graph.initializer}
        self._widths = {name: each.dims[1] for name, each in matrices(graph).items()}
        self._made_by = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._widened: set[str] = set()  # some architectures use one layer's weights many times
        self._masks: dict[tuple[int, int], str] = {}

    def can_rewrite(self, node: NodeProto) -> bool:
        if len(node.input) != _INPUTS or node.input[3] not in self._constants:
            return False
        return all(self._is_product(x) for x in node.input[:2])

    def rewrite(self, node: NodeProto) -> None:
        """Widen what the layer reads, unless another layer did, and take its mask away."""
        query, key, _, bias, _ = node.input
        weights = [self._made_by[x].input[1] for x in (query, key)]
        heads, width = _heads(node), self._widths[weights[0]]
        if bias not in self._widened:
            of_query, of_key, of_value = np.split(self._value(bias), [width, 2 * width])
            wider = widen_heads(of_query, heads, 1), widen_heads(of_key, heads), of_value
            self._replace(bias, np.concatenate(wider))
        for weight in weights:
            if weight not in self._widened:
                self._replace(weight, widen_heads(self._value(weight), heads))
        masked = helper.make_node("Add", [key, self._mask(heads, width // heads)], [f"{key}_masked"])
        self._graph.node.insert(list(self._graph.node).index(node), masked)
        node.input[1] = masked.output[0]
        del node.input[4]
        # The default would be that of the wider heads.
        node.attribute.append(helper.make_attribute("scale", (width // heads) ** -0.5))

    def finish(self) -> None:
        """Drop what computed the masks that nothing reads any more."""
        graph = self._graph
        while True:
            read = {name for node in graph.node for name in node.input} | {x.name for x in graph.output}
            dead = [node for node in graph.node if read.isdisjoint(node.output)]
            if not dead:
                break
            for node in dead:
                graph.node.remove(node)
        # One by one: a list that is filled again would hold every weight twice.
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].name not in read:
                del graph.initializer[index]

    def _is_product(self, x: str) -> bool:
        """Whether `x` is a product with a constant, and only attention reads products with that."""
        node = self._made_by.get(x)
        if node is None or node.op_type != "MatMul" or node.input[1] not in self._widths:
            return False
        products = self._readers[node.input[1]]
        readers = [each for product in products for each in self._readers.get(product.output[0], [])]
        return len(readers) == len(products) and {each.op_type for each in readers} == {ATTENTION}

    def _mask(self, heads: int, size: int) -> str:
        """(B, T, heads * (size + 1)): 0, but in each head's last coordinate of padding very negative."""
        if (heads, size) not in self._masks:
            name = self._masks[heads, size] = f"{_MASK}_{heads}_{size}"
            last = widen_heads(np.zeros(heads * size, np.float32), heads, -_PADDED * size**0.5)
            self._constant(f"{name}_one", np.float32(1))
            self._constant(f"{name}_axis", np.array([2], np.int64))
            self._constant(f"{name}_last", last)
            steps = (
                helper.make_node("Cast", ["attention_mask"], [f"{name}_real"], to=TensorProto.FLOAT),
                helper.make_node("Sub", [f"{name}_real", f"{name}_one"], [f"{name}_padding"]),
                helper.make_node("Unsqueeze", [f"{name}_padding", f"{name}_axis"], [f"{name}_column"]),
                helper.make_node("Mul", [f"{name}_column", f"{name}_last"], [name]),
            )
            for step in reversed(steps):
                self._graph.node.insert(0, step)
        return self._masks[heads, size]

    def _value(self, name: str) -> NDArray[np.float32]:
        value: NDArray[np.float32] = numpy_helper.to_array(self._constants[name])
        return value

    def _replace(self, name: str, value: NDArray[np.float32]) -> None:
        self._widened.add(name)
        self._constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))

    def _constant(self, name: str, value: object) -> None:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def _width(graph: onnx.GraphProto, x: str, constants: Mapping[str, TensorProto]) -> int:
    """Of what the linear layer takes that reads `x`, whatever its shape."""
    readers = [node for node in graph.node if x in node.input[:1]]
    products = [node for node in readers if node.op_type == "MatMul"]
    if products:
        return int(constants[products[0].input[1]].dims[0])
    (reshaped,) = [node for node in readers if node.op_type == "Reshape"]
    return _width(graph, reshaped.output[0], constants)


def _heads(node: NodeProto) -> int:
    return next(int(each.i) for each in node.attribute if each.name == "num_heads")
