"""Rewrites an FP32 graph to per-row W8A8: INT8 weights, activations quantised row by row.

It does not know the graph's origin, tokenizers or the quality of the result.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from model_build.graphs import load_constants, load_graph, raise_opset, reading_constants, save_whole
from model_build.linears import Linear, linear_of, matrices, per_token, weight_of
from model_build.rounding import quantize_columns, quantize_rows
from model_build.smoothing import Channels

# What all quantised layers share.
_ONE = "int8_one"
_TOKENS = "int8_tokens"
_SMOOTHING = "_smoothing"


@dataclass(frozen=True, slots=True)
class _Range:
    """Which integers a row's numbers become. least: no number is smaller, if that is known.

    zero: the integer of 0; numbers go up to 255, and down to 0.
    """

    zero: int
    least: float | None

    @property
    def key(self) -> str:
        return f"int8_{self.zero}"


_SIGNED = _Range(128, None)
# GELU is never below -0.17, ReLU never below 0: for the other sign they need no half of the integers.
_ABOVE = {
    **dict.fromkeys(("Gelu", "BiasGelu", "FastGelu", "QuickGelu"), _Range(32, -0.1701)),
    "Relu": _Range(0, 0.0),
}


def quantize_per_row(
    src: Path,
    out: Path,
    divisors: Mapping[str, Channels] | None = None,
    kept: Collection[str] = (),
) -> int:
    """Write `out`, `src` with INT8 linear layers and word embeddings. Returns how many layers.

    src: an FP32 graph of opset 17, fused but not yet optimised by ONNX Runtime. divisors: layers' input
    -> by what its channels are divided first, and its weights multiplied (see smoothing.py). kept:
    outputs of layers that stay in FP32 (see sensitivity.py).

    Every MatMul and Gemm whose right-hand side is a constant (K, N) matrix becomes

        s_x = max(|x| over the row) / 127                            one scale per token
        y   = MatMulIntegerToFloat(uint8(x / s_x) + 128, W) * s_x    one weight scale per column

    and of what a GELU or ReLU gives, where -0.17 or 0 is known to be the least,

        s_x = max(max(x over the row) / 223, 0.1701 / 32)            32 is zero; ReLU: 255, and 0

    A row's scale depends on that row alone, so a text's vector does not depend on its batch-mates.
    Layers that read the same tensor (Q, K and V) share its quantised form. Other products, and
    constants that are not matrices, stay as they are.

    Activations are uint8 because uint8 x int8 is what VNNI multiplies. Without VNNI, AVX2 multiplies
    with vpmaddubsw, which sums two adjacent products in a saturating int16: with weights up to 127 that
    clips, and the same file would give different vectors on an older processor. Here the weight scale of
    a column is large enough that 255 * (sum of an adjacent pair of one sign) fits in 32767, so the
    integers are exact with and without VNNI. Mean cosine to FP32 of all-MiniLM-L6-v2 on AVX2: 0.9974
    this way, 0.9966 with the usual max|w| / 127 (clipped), 0.9976 with that and exact products.
    """
    with reading_constants(src) as model:
        layers = _Rewriter(model.graph, divisors or {}, kept).rewrite()
    raise_opset(model)
    load_constants(model, src.parent)
    if not any(opset.domain == "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    save_whole(model, out)
    return layers


def smoothing_in(path: Path) -> list[Channels]:
    """The divisors that the layers of a written graph were made with, each once."""
    found = {
        each.name: (1 / numpy_helper.to_array(each)).astype(np.float32)
        for each in load_graph(path).graph.initializer
        if each.name.endswith(_SMOOTHING)
    }
    return [found[name] for name in sorted(found)]


class _Rewriter:
    """One pass over a graph: nodes are copied or replaced, in order."""

    def __init__(
        self, graph: onnx.GraphProto, divisors: Mapping[str, Channels], kept: Collection[str]
    ) -> None:
        self._graph = graph
        self._divisors = divisors
        self._kept = kept
        self._initializers: dict[str, TensorProto] = {i.name: i for i in graph.initializer}
        self._matrices = matrices(graph)
        self._made_by = {name: node.op_type for node in graph.node for name in node.output}
        self._per_token = per_token(graph)
        self._zeros: set[str] = set()
        self._nodes: list[NodeProto] = []
        self._rows: dict[str, str] = {}  # tensor -> name of its quantised form
        self._weights: dict[tuple[str, bool, bytes], str] = {}
        self._constant(_ONE, np.asarray(np.float32(1)))

    def rewrite(self) -> int:
        """Rewrite the graph in place; how many layers became INT8."""
        layers = sum(self._rewrite(node) for node in list(self._graph.node))
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        used |= {output.name for output in self._graph.output}
        del self._graph.initializer[:]
        self._graph.initializer.extend(i for i in self._initializers.values() if i.name in used)
        return layers

    def _rewrite(self, node: NodeProto) -> bool:
        layer = linear_of(node, self._matrices)
        if layer is not None and layer.y not in self._kept:
            if layer.bias:
                product = replace(layer, y=f"{layer.y}_product")
                self._linear(product)
                self._add("Add", [product.y, layer.bias], layer.y)
            else:
                self._linear(layer)
            return True
        if node.op_type == "Gather" and node.input[1] == "input_ids" and node.input[0] in self._matrices:
            self._embedding(node)
            return False
        self._nodes.append(node)
        return False

    def _linear(self, layer: Linear) -> None:
        """Write a layer's product as INT8, without its bias."""
        columns = self._quantized_weight(layer)
        width = self._initializers[columns].dims[0]
        rows, values = self._quantized_rows(layer.x, width), self._range(layer.x)
        inputs = [rows, columns, _ONE, f"{columns}_scale", f"{values.key}_zero", f"{columns}_zero"]
        self._add("MatMulIntegerToFloat", inputs, f"{layer.y}_int8", domain="com.microsoft")
        self._add("Mul", [f"{layer.y}_int8", f"{rows}_scale"], layer.y)

    def _range(self, x: str) -> _Range:
        return _ABOVE.get(self._made_by.get(x, ""), _SIGNED)

    def _quantized_rows(self, x: str, width: int) -> str:
        if x in self._rows:
            return self._rows[x]
        name, original = f"{x}_rows", x
        self._rows[x] = name
        values = self._range(x)
        self._range_constants(values)
        if x in self._divisors:
            self._constant(f"{name}{_SMOOTHING}", (1 / self._divisors[x]).astype(np.float32))
            self._add("Mul", [x, f"{name}{_SMOOTHING}"], f"{name}_smooth")
            x = f"{name}_smooth"
        magnitudes = x
        if values.least is None:
            magnitudes = f"{name}_abs"
            self._add("Abs", [x], magnitudes)
        self._add("ReduceMax", [magnitudes], f"{name}_max", axes=[-1], keepdims=1)
        self._add("Mul", [f"{name}_max", f"{values.key}_inverse"], f"{name}_raw_scale")
        # A row of zeros would divide by zero.
        self._add("Max", [f"{name}_raw_scale", f"{values.key}_floor"], f"{name}_scale")
        if original in self._per_token:
            # A block a row: it is divided by its scale as it is rounded, without a pass over x before.
            scales = [f"{name}_scale", self._zeros_of_tokens(values)]
            self._add("QuantizeLinear", [x, *scales], name, axis=-1, block_size=width)
        else:
            self._add("Div", [x, f"{name}_scale"], f"{name}_unit")
            self._add("QuantizeLinear", [f"{name}_unit", _ONE, f"{values.key}_zero"], name)
        return name

    def _zeros_of_tokens(self, values: _Range) -> str:
        """(B, T, 1) of the integer of 0, for blocks have one each; written once."""
        zeros = f"{values.key}_zeros"
        if zeros not in self._zeros:
            if not self._zeros:
                self._constant(f"{_TOKENS}_one", np.array([1], np.int64))
                self._add("Shape", ["input_ids"], f"{_TOKENS}_batch")
                self._add("Concat", [f"{_TOKENS}_batch", f"{_TOKENS}_one"], _TOKENS, axis=0)
            self._zeros.add(zeros)
            self._add("Expand", [f"{values.key}_zero", _TOKENS], zeros)
        return zeros

    def _range_constants(self, values: _Range) -> None:
        floor = -values.least / values.zero if values.least else 1e-10
        self._constant(f"{values.key}_zero", np.asarray(np.uint8(values.zero)))
        self._constant(f"{values.key}_inverse", np.asarray(np.float32(1 / (255 - values.zero))))
        self._constant(f"{values.key}_floor", np.asarray(np.float32(floor)))

    def _quantized_weight(self, layer: Linear) -> str:
        divisors = self._divisors.get(layer.x)
        key = layer.weight, layer.transposed, b"" if divisors is None else divisors.tobytes()
        if key not in self._weights:  # some architectures use one layer's weights many times
            name = f"{layer.weight}_int8{'_transposed' if layer.transposed else ''}"
            name = self._weights[key] = f"{name}_{len(self._weights)}"
            matrix = weight_of(layer, self._matrices)
            quantized, scale = quantize_columns(
                matrix if divisors is None else matrix * divisors[:, None]
            )
            self._constant(name, quantized)
            self._constant(f"{name}_scale", scale)
            self._constant(f"{name}_zero", np.zeros_like(scale, np.int8))
        return self._weights[key]

    def _embedding(self, node: NodeProto) -> None:
        """Word embeddings (V, H): INT8 rows with one scale per row, applied after the look-up."""
        table, ids = node.input
        y = node.output[0]
        quantized, scale = quantize_rows(numpy_helper.to_array(self._initializers[table]))
        self._constant(f"{table}_int8", quantized)
        self._constant(f"{table}_int8_scale", scale)
        self._add("Gather", [f"{table}_int8", ids], f"{y}_int8", axis=0)
        self._add("Cast", [f"{y}_int8"], f"{y}_float", to=TensorProto.FLOAT)
        self._add("Gather", [f"{table}_int8_scale", ids], f"{y}_scale", axis=0)
        self._add("Mul", [f"{y}_float", f"{y}_scale"], y)

    def _constant(self, name: str, value: NDArray[np.generic]) -> None:
        self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)

    def _add(self, op: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> None:
        self._nodes.append(helper.make_node(op, inputs, [output], domain=domain, **attributes))
