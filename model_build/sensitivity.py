"""Chooses the linear layers that stay in FP32 where INT8 costs a model too much.

Each layer is made INT8 alone, and what that does to the result is its cost. It does not know how layers
are quantised, which limits there are or how the chosen graph is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_build.calibration import choosing_inputs, proving_inputs
from model_build.graphs import load_graph, load_nodes, open_graph
from model_build.linears import linears, matrices
from model_build.source import SourceModel
from shared.contracts import FloatMatrix, Tokens
from shared.engines.base import pad
from shared.inference.schedule import plan_batches
from shared.vectors import apply_layer, finish, pool

_SWITCH = "int8_layers"
_HARDEST = 16
"""Of the texts that layers are chosen by, those that INT8 harms most: each layer is tried with them."""
_BATCH_TOKENS = 384
_BATCH_TEXTS = 32

Holds = Callable[[FloatMatrix, FloatMatrix, Sequence[int]], bool]
"""Whether results, in INT8 with some layers in FP32 and all in FP32, are close enough. Unit vectors; or
logits, and how many documents each query has."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Layers that stay in FP32. layers: names of their outputs in the graph, the most costly first.

    share: of all linear layers' multiplications.
    """

    layers: tuple[str, ...] = ()
    share: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """For people: /model/layer.0/output/dense/MatMul_output_0 as layer.0.output.dense."""
        paths = (layer.strip("/").rsplit("/", 1)[0].replace("/", ".") for layer in self.layers)
        return tuple(path.removeprefix("model.") for path in paths)


class Sensitivity:
    """What each linear layer costs in INT8, over texts of the builder's own.

    fp32, int8: the graphs before and after quantisation. The layers are ranked by some texts, and how
    many are kept is decided by others.
    """

    def __init__(self, fp32: Path, int8: Path, source: SourceModel) -> None:
        model = load_nodes(fp32)
        constants = matrices(model.graph)
        layers = linears(model.graph)
        self._layers = [layer.y for layer in layers]
        sizes = np.array([np.prod(constants[layer.weight].dims) for layer in layers], np.float64)
        self._shares = dict(zip(self._layers, sizes / sizes.sum(), strict=True))
        self._source = source
        self._graphs = fp32, int8
        self._session: ort.InferenceSession | None = None
        self._ranking = self._rank()

    def kept_sets(self, holds: Holds, most_share: float) -> Iterator[Kept]:
        """The fewest layers with which `holds` is true of the proving texts, then more and more of them.

        most_share: what may be kept of all linear layers' multiplications. Yields nothing if even that
        is too little. The search assumes that with more layers in FP32 no result is worse.
        """
        sequences, counts = proving_inputs(self._source)
        exact = self._run(sequences, ())

        def is_enough(count: int) -> bool:
            rest = self._layers_but(self._ranking[:count])
            return holds(self._run(sequences, rest), exact, counts)

        most = self._most(most_share)
        if most == 0 or not is_enough(most):
            return
        low, high = 0, most  # `high` is enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if is_enough(middle) else (middle, high)
        self._session = None  # the caller builds and compares, which needs the memory
        while high <= most:
            yield self._kept(high)
            high += max(1, high // 2)

    def _kept(self, count: int) -> Kept:
        layers = tuple(self._ranking[:count])
        return Kept(layers, float(sum(self._shares[layer] for layer in layers)))

    def _most(self, most_share: float) -> int:
        shares = np.cumsum([self._shares[layer] for layer in self._ranking])
        return int((shares <= most_share + 1e-9).sum())

    def _rank(self) -> list[str]:
        """All layers, the most costly first."""
        sequences, counts = choosing_inputs(self._source)
        exact = self._run(sequences, ())
        if self._source.task == "embedding":
            losses = self._losses(self._run(sequences, self._layers), exact, counts)
            hardest = np.argsort(-losses, kind="stable")[:_HARDEST]
            sequences, exact = [sequences[row] for row in hardest], exact[hardest]
        costs = {
            layer: float(self._losses(self._run(sequences, [layer]), exact, counts).sum())
            for layer in self._layers
        }
        return sorted(self._layers, key=lambda layer: -np.nan_to_num(costs[layer], nan=np.inf))

    def _losses(self, rows: FloatMatrix, exact: FloatMatrix, counts: Sequence[int]) -> FloatMatrix:
        """(N,) float32: 1 - cosine; or the square of a logit's error, without what a query's share."""
        if self._source.task == "embedding":
            return np.asarray(1 - (rows * exact).sum(axis=1), np.float32)
        errors = rows - exact
        starts = np.cumsum([0, *counts[:-1]])
        means = np.add.reduceat(errors, starts) / np.array(counts, np.float32)[:, None]
        return np.asarray(((errors - np.repeat(means, counts, axis=0)) ** 2).sum(axis=1), np.float32)

    def _layers_but(self, kept: Collection[str]) -> list[str]:
        return [layer for layer in self._layers if layer not in kept]

    def _run(self, sequences: Sequence[Tokens], int8: Collection[str]) -> FloatMatrix:
        """(N, D) float32 unit vectors, or (N, L) logits. int8: the layers that are."""
        switch = np.isin(self._layers, list(int8))
        plan = plan_batches(
            [len(tokens) for tokens in sequences], budget_tokens=_BATCH_TOKENS, max_texts=_BATCH_TEXTS
        )
        rows = np.empty((len(sequences), self._source.dimensions), np.float32)
        for batch in plan:
            rows[batch] = self._run_batch([sequences[row] for row in batch], switch)
        return rows

    def _run_batch(self, sequences: Sequence[Tokens], switch: NDArray[np.bool_]) -> FloatMatrix:
        padded = pad(sequences, self._source.pad_token_id)
        if self._session is None:
            fp32, int8 = self._graphs
            self._session = open_graph(switchable(load_nodes(fp32), load_graph(int8)), fp32.parent)
        feeds = {
            each.name: switch if each.name == _SWITCH else getattr(padded, each.name)
            for each in self._session.get_inputs()
        }
        output: FloatMatrix = self._session.run(None, feeds)[0]
        rows = output
        if self._source.pooling is not None:
            rows = pool(output, [len(tokens) for tokens in sequences], self._source.pooling)
        for layer in self._source.layers:
            rows = apply_layer(rows, layer)
        return finish(rows, None, normalize=True) if self._source.task == "embedding" else rows


def switchable(fp32: onnx.ModelProto, int8: onnx.ModelProto) -> onnx.ModelProto:
    """The INT8 graph with every linear layer in FP32 too, and an input that says which of both is read.

    `int8_layers`, (L,) bool, is in the order of `linears`. Both forms are computed, so that one session
    does for all choices.
    """
    merged = onnx.ModelProto()
    merged.CopyFrom(int8)
    graph = merged.graph
    places = {layer.y: place for place, layer in enumerate(linears(fp32.graph))}
    originals = {y: node for node in fp32.graph.node for y in node.output if y in places}
    nodes = []
    for node in int8.graph.node:
        nodes.append(node)
        for y in [each for each in node.output if each in places]:
            node.output[list(node.output).index(y)] = f"{y}_as_int8"
            nodes += _choice(originals[y], y, places[y])
    del graph.node[:]
    graph.node.extend(nodes)
    known = {each.name for each in graph.initializer}
    graph.initializer.extend(each for each in fp32.graph.initializer if each.name not in known)
    graph.initializer.extend(
        numpy_helper.from_array(np.array(place, np.int64), f"{y}_place") for y, place in places.items()
    )
    graph.input.append(helper.make_tensor_value_info(_SWITCH, TensorProto.BOOL, [len(places)]))
    return merged


def _choice(original: onnx.NodeProto, y: str, place: int) -> list[onnx.NodeProto]:
    exact = onnx.NodeProto()
    exact.CopyFrom(original)
    exact.name = f"{original.name}_{place}_exact"
    exact.output[0] = f"{y}_exact"
    return [
        exact,
        helper.make_node("Gather", [_SWITCH, f"{y}_place"], [f"{y}_switch"], axis=0),
        helper.make_node("Where", [f"{y}_switch", f"{y}_as_int8", f"{y}_exact"], [y]),
    ]
